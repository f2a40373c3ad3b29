//! `k0s kubectl`: the real kubectl with the credentials of the cluster on this machine.
//!
//! Invariant: kubectl's arguments reach it as they were typed; only `--data-dir` and `--run-dir` are k0s' own. k0s is replaced
//! by kubectl, so signals, terminal and exit status are kubectl's. Also reached through a link named `kubectl`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::instance;
use crate::executables::SearchPath;
use crate::paths::PathChoices;

const KUBECONFIG: &str = "KUBECONFIG";

/// What follows the command if this is `k0s kubectl`, `k0s kc`, or k0s under kubectl's name.
pub fn own_arguments(arguments: &[OsString]) -> Option<&[OsString]> {
    let name = arguments.first().and_then(|program| Path::new(program).file_name())?;
    if name == "kubectl" || name == "k0s-kubectl" {
        return Some(&arguments[1..]);
    }
    let command = arguments.get(1)?;
    (command == "kubectl" || command == "kc").then(|| &arguments[2..])
}

pub fn run(arguments: &[OsString]) -> anyhow::Result<()> {
    let (choices, arguments) = split(arguments)?;
    let located = instance::locate(choices)?;
    let kubectl = SearchPath::of(&located.paths).find("kubectl")?;
    let mut command = Command::new(&kubectl);
    let has_own = arguments.iter().take_while(|a| *a != "--").any(|a| is_flag(a, "--kubeconfig"));
    if !has_own && std::env::var_os(KUBECONFIG).is_none_or(|value| value.is_empty()) {
        // By variable, so that plugins of kubectl get it, too.
        command.env(KUBECONFIG, located.paths.admin_kubeconfig());
    }
    let error = command.args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", kubectl.display()))
}

fn split(arguments: &[OsString]) -> anyhow::Result<(PathChoices, Vec<OsString>)> {
    let mut choices = PathChoices::default();
    let mut rest = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            rest.push(argument.clone());
            break;
        }
        let (flag, place) = if is_flag(argument, "--data-dir") {
            ("--data-dir", &mut choices.data_dir)
        } else if is_flag(argument, "--run-dir") {
            ("--run-dir", &mut choices.run_dir)
        } else {
            rest.push(argument.clone());
            continue;
        };
        let value = match argument.as_bytes().strip_prefix(format!("{flag}=").as_bytes()) {
            Some(value) => OsString::from_vec(value.to_vec()),
            None => match arguments.next() {
                Some(value) => value.clone(),
                None => bail!("{flag} needs a directory"),
            },
        };
        *place = Some(value.into());
    }
    rest.extend(arguments.cloned());
    Ok((choices, rest))
}

/// `--flag` or `--flag=value`.
fn is_flag(argument: &OsStr, flag: &str) -> bool {
    let rest = argument.as_bytes().strip_prefix(flag.as_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn kubectl_is_recognised_by_command_and_by_name() {
        let own = |text: &str| own_arguments(&words(text)).map(<[OsString]>::to_vec);
        assert_eq!(own("k0s kubectl get ns"), Some(words("get ns")));
        assert_eq!(own("/usr/bin/k0s kc get ns"), Some(words("get ns")));
        assert_eq!(own("/usr/bin/kubectl get ns"), Some(words("get ns")));
        assert_eq!(own("k0s-kubectl kc"), Some(words("kc")));
        assert_eq!(own("k0s status"), None);
        assert_eq!(own("k0s"), None);
    }

    #[test]
    fn only_k0s_own_flags_are_taken_and_not_after_two_dashes() {
        let (choices, rest) =
            split(&words("--data-dir /d exec p --run-dir=/r -it -- ls --data-dir x --help")).unwrap();
        assert_eq!(choices.data_dir.unwrap(), Path::new("/d"));
        assert_eq!(choices.run_dir.unwrap(), Path::new("/r"));
        assert_eq!(rest, words("exec p -it -- ls --data-dir x --help"));
        assert!(split(&words("get ns --data-dir")).is_err());
        assert_eq!(split(&words("--data-directory x")).unwrap().1, words("--data-directory x"));
    }
}
