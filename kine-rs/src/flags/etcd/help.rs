//! What `etcd --help` prints, in etcd's layout: a heading, a flag with its default, what it is for.

use super::table::{Effect, Flag, Kind, SECTIONS};
use std::fmt::Write;

/// How the program is called; goes to standard error with every complaint about a flag.
pub const USAGE: &str = "Usage:

  etcd [flags]
    Start a server.

  etcd --version
    Show the version.

  etcd -h | --help
    Show all flags.

  etcd --config-file
    Take all settings from this file; flags and variables are void then. Times in it are whole nanoseconds or texts such
    as \"10m\".
";

/// All flags with their defaults; goes to standard output.
pub fn help() -> String {
    let mut text = String::new();
    for (heading, flags) in SECTIONS.iter().filter(|(_, flags)| !flags.iter().all(is_in_usage)) {
        write!(text, "\n{heading}:\n").expect("text grows");
        for flag in *flags {
            let default = match flag.name {
                "data-dir" => "${name}.etcd",
                "initial-cluster" => "default=http://localhost:2380",
                _ => flag.default,
            };
            let note = match flag.effect {
                Effect::Some => "",
                Effect::None => " Without effect here.",
                Effect::Refused => " Refused here.",
            };
            writeln!(text, "  --{} '{default}'\n    {}{note}", flag.name, flag.about).expect("text grows");
            if flag.kind == Kind::Gates {
                for gate in super::gates::GATES {
                    let (stage, default) = (gate.stage.name(), gate.default);
                    writeln!(text, "    {}=true|false ({stage} - default={default})", gate.name)
                        .expect("text grows");
                }
            }
        }
    }
    text + "\nAn unsafe flag gives up what this server otherwise promises: that an acknowledged write is never lost.\n"
}

fn is_in_usage(flag: &Flag) -> bool {
    matches!(flag.name, "config-file" | "version")
}
