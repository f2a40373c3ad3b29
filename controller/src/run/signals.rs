//! The signals that stop k0s.
//!
//! Invariant: from `listen` on none of them ends the process by itself; each is handed out once, by `next`. A terminal that
//! goes away is a reason to stop as well, unless k0s was started to outlive it (`nohup` has SIGHUP ignored).

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    pub fn listen() -> io::Result<Signals> {
        let outlives_terminal = is_ignored(libc::SIGHUP)?;
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: (!outlives_terminal).then(|| signal(SignalKind::hangup())).transpose()?,
        })
    }

    /// The name of the next signal. Nothing is lost when this is dropped before it answers.
    pub async fn next(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = hangup => "SIGHUP",
        }
    }
}

fn is_ignored(number: libc::c_int) -> io::Result<bool> {
    // SAFETY: a sigaction is plain numbers, for which all zeros are valid.
    let mut current: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is set; what is there is written to a live value of the right type.
    match unsafe { libc::sigaction(number, std::ptr::null(), &mut current) } {
        0 => Ok(current.sa_sigaction == libc::SIG_IGN),
        _ => Err(io::Error::last_os_error()),
    }
}
