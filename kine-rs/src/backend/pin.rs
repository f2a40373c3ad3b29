//! Holding rows back from compaction while somebody reads them in several steps.
//!
//! While a pin is held, compaction takes effect as ever (what it forbids is forbidden) but its rows stay, so two walks over
//! a view find the same rows. Whoever loads a view after it was given a pin finds all rows of that view: the writer asks for
//! pins before it takes rows away, and then takes only those that the published compaction has made invisible. It is woken
//! when a pin that it had to wait for ends.
//! A holder that does nothing for too long, or goes on for too long, loses the pin and is told so; nobody can keep the
//! database from shrinking.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

/// How long a holder may leave a pin untouched.
const IDLE_MAX: Duration = Duration::from_secs(60);

pub struct Pin {
    used: Arc<Mutex<Used>>,
    pins: Pins,
}

struct Used {
    /// The last use; `None` once the pin is lost.
    last: Option<Instant>,
    /// When it ends at the latest.
    until: Option<Instant>,
}

/// The pin was left untouched or was held for too long: rows of the view may be gone.
#[derive(Debug, thiserror::Error)]
#[error("it was read too slowly: nothing for {} seconds, or for too long altogether", IDLE_MAX.as_secs())]
pub struct PinLost;

impl Pin {
    /// Keeps the pin for another while.
    pub fn touch(&self) -> Result<(), PinLost> {
        let mut used = self.used.lock().expect("no holder of a pin's lock panics");
        *used.last.as_mut().ok_or(PinLost)? = Instant::now();
        Ok(())
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // First, so that whoever is woken finds it gone.
        self.used.lock().expect("no holder of a pin's lock panics").last = None;
        self.pins.ended();
    }
}

/// All pins that are out.
#[derive(Clone, Default)]
pub struct Pins(Arc<Out>);

#[derive(Default)]
struct Out {
    all: Mutex<Vec<Weak<Mutex<Used>>>>,
    /// The writer has rows that wait for a pin to end.
    awaited: AtomicBool,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Pins {
    /// Pins that wake the writer.
    pub fn waking(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Pins(Arc::new(Out { wake: OnceLock::from(Box::new(wake) as Box<_>), ..Out::default() }))
    }

    /// A pin for at most `held_max`; without it, for as long as it is used.
    pub fn give(&self, now: Instant, held_max: Option<Duration>) -> Pin {
        let used = Used { last: Some(now), until: held_max.map(|held_max| now + held_max) };
        let used = Arc::new(Mutex::new(used));
        self.all().push(Arc::downgrade(&used));
        Pin { used, pins: self.clone() }
    }

    /// Whether rows must stay; takes pins away that were left untouched or held for too long.
    pub fn hold(&self, now: Instant) -> bool {
        // Before they are looked at: one that ends meanwhile must not be missed.
        self.0.awaited.store(true, Ordering::SeqCst);
        let mut all = self.all();
        all.retain(|pin| pin.upgrade().is_some_and(|used| keep(&used, now)));
        let held = !all.is_empty();
        self.0.awaited.store(held, Ordering::SeqCst);
        held
    }

    fn ended(&self) {
        if self.0.awaited.load(Ordering::SeqCst)
            && let Some(wake) = self.0.wake.get()
        {
            wake();
        }
    }

    fn all(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Mutex<Used>>>> {
        self.0.all.lock().expect("no holder of the pins panics")
    }
}

fn keep(used: &Mutex<Used>, now: Instant) -> bool {
    let mut used = used.lock().expect("no holder of a pin's lock panics");
    let over = used.until.is_some_and(|until| until <= now);
    used.last = used.last.filter(|last| !over && now.saturating_duration_since(*last) < IDLE_MAX);
    used.last.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_holds_until_it_is_dropped_or_forgotten() {
        let (pins, now) = (Pins::default(), Instant::now());
        assert!(!pins.hold(now));
        let (kept, dropped) = (pins.give(now, None), pins.give(now, None));
        drop(dropped);
        assert!(pins.hold(now + IDLE_MAX / 2));
        kept.touch().expect("in time");
        assert!(!pins.hold(now + IDLE_MAX * 2));
        assert!(kept.touch().is_err());
    }

    #[test]
    fn a_pin_ends_at_its_time_however_much_it_is_used() {
        let (pins, now) = (Pins::default(), Instant::now());
        let pin = pins.give(now, Some(IDLE_MAX / 4));
        pin.touch().expect("in time");
        assert!(pins.hold(now + IDLE_MAX / 8));
        assert!(!pins.hold(now + IDLE_MAX / 4));
        assert!(pin.touch().is_err());
    }
}
