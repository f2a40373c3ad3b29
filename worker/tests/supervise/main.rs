//! The supervisor with real processes: shell scripts, and this test binary itself in a role of [`survivors`].

mod bed;
mod ending;
mod group;
mod lifecycle;
mod output;
mod refusals;
mod survivors;
