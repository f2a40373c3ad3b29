//! Command lines: text from arguments and the environment -> `Config`. Nothing is opened here.
//!
//! One file per face; what Go's flag packages accept beyond clap is evened out before clap sees it. Called by
//! `main`; a flag that can have no meaning for this store is accepted, and all of those given are named in one warning.

pub mod etcd;
pub mod kine;
pub mod snapshot;

mod duration;

pub use duration::{parse_duration, parse_positive_duration};

/// Go takes `-name` for `--name` and knows no clusters of short flags.
pub fn double_dashes(arguments: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut verbatim = false;
    arguments
        .into_iter()
        .map(|argument| {
            verbatim |= argument == "--";
            let single = argument.strip_prefix('-').is_some_and(|name| {
                name.len() > 1 && name.starts_with(|first: char| first.is_ascii_alphabetic())
            });
            if single && !verbatim { format!("-{argument}") } else { argument }
        })
        .collect()
}

/// Go's spellings of a truth value.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_dashes_become_double_ones_but_values_stay() {
        let given = ["-endpoint=x", "--debug", "-v", "-1", "--", "-endpoint"].map(String::from);
        assert_eq!(double_dashes(given), ["--endpoint=x", "--debug", "-v", "-1", "--", "-endpoint"]);
    }
}
