//! Holding rows back from compaction while somebody reads them in several steps.
//!
//! While a pin is held, compaction takes effect as ever (what it forbids is forbidden) but its rows stay, so two walks over
//! a view find the same rows. Handed out by the writer between two batches, so no removal is under way when it is given.
//! A holder that does nothing for too long loses the pin and is told so; nobody can keep the database from shrinking.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// How long a holder may leave a pin untouched.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Last use of a pin; `None` once it is lost.
type Used = Mutex<Option<Instant>>;

pub struct Pin(Arc<Used>);

/// The pin was left untouched for too long: rows of the view may be gone.
#[derive(Debug, thiserror::Error)]
#[error("nothing was read for {} seconds", IDLE_MAX.as_secs())]
pub struct PinLost;

impl Pin {
    /// Keeps the pin for another while.
    pub fn touch(&self) -> Result<(), PinLost> {
        let mut used = self.0.lock().expect("no holder of a pin's lock panics");
        *used.as_mut().ok_or(PinLost)? = Instant::now();
        Ok(())
    }
}

/// The writer's side: all pins that are out.
#[derive(Default)]
pub struct Pins(Vec<Weak<Used>>);

impl Pins {
    pub fn give(&mut self, now: Instant) -> Pin {
        let used = Arc::new(Mutex::new(Some(now)));
        self.0.push(Arc::downgrade(&used));
        Pin(used)
    }

    /// Whether rows must stay; takes pins away that were left untouched.
    pub fn hold(&mut self, now: Instant) -> bool {
        self.0.retain(|pin| pin.upgrade().is_some_and(|used| keep(&used, now)));
        !self.0.is_empty()
    }
}

fn keep(used: &Used, now: Instant) -> bool {
    let mut used = used.lock().expect("no holder of a pin's lock panics");
    *used = used.filter(|last| now.saturating_duration_since(*last) < IDLE_MAX);
    used.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_holds_until_it_is_dropped_or_forgotten() {
        let (mut pins, now) = (Pins::default(), Instant::now());
        assert!(!pins.hold(now));
        let (kept, dropped) = (pins.give(now), pins.give(now));
        drop(dropped);
        assert!(pins.hold(now + IDLE_MAX / 2));
        kept.touch().expect("in time");
        assert!(!pins.hold(now + IDLE_MAX * 2));
        assert!(kept.touch().is_err());
    }
}
