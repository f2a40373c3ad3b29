//! The environment of a component, made from that of k0s by the rules of upstream k0s.
//!
//! Pure. `controller::plan` calls it; the supervisor itself passes on exactly what the spec says.

use std::path::Path;

/// Marks a process as started by k0s, as upstream does.
pub const MANAGED: (&str, &str) = ("_K0S_MANAGED", "yes");

/// Talk between k0s and whoever started it; a component that found them would answer in the name of k0s.
const NOT_INHERITED: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// What `component` gets of `inherited`: everything, where a variable with the upper-cased component name and `_` in
/// front (`CONTAINERD_HTTPS_PROXY`, `KUBE_APISERVER_HTTPS_PROXY`) loses that prefix and wins over the plain one.
/// Dashes of the name may be written as they are or, because shells cannot export them, as `_`. `bin_dir` comes first
/// in `PATH`. The result is sorted by name.
pub fn component_environment(
    component: &str,
    inherited: impl IntoIterator<Item = (String, String)>,
    bin_dir: &Path,
) -> Vec<(String, String)> {
    let exact = format!("{}_", component.to_uppercase());
    let exportable = exact.replace('-', "_");
    let mut plain = std::collections::BTreeMap::new();
    let mut own = Vec::new();
    for (name, value) in inherited {
        let bare = name.strip_prefix(&exact).or_else(|| name.strip_prefix(&exportable));
        match bare {
            Some(bare) if !bare.is_empty() => own.push((bare.to_owned(), value)),
            _ if NOT_INHERITED.contains(&name.as_str()) => {}
            _ => {
                plain.insert(name, value);
            }
        }
    }
    plain.extend(own);
    let path = match plain.get("PATH") {
        Some(path) if !path.is_empty() => format!("{}:{path}", bin_dir.display()),
        _ => bin_dir.display().to_string(),
    };
    plain.insert("PATH".to_owned(), path);
    plain.insert(MANAGED.0.to_owned(), MANAGED.1.to_owned());
    plain.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(component: &str, inherited: &[(&str, &str)], expected: &[(&str, &str)]) {
        let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
        };
        let environment = component_environment(component, owned(inherited), Path::new("/k0s/bin"));
        assert_eq!(environment, owned(expected));
    }

    #[test]
    fn prefixed_variables_win_over_plain_ones_in_either_order() {
        let expected = [("HTTPS_PROXY", "own"), ("PATH", "/k0s/bin"), MANAGED];
        check("containerd", &[("CONTAINERD_HTTPS_PROXY", "own"), ("HTTPS_PROXY", "all")], &expected);
        check("containerd", &[("HTTPS_PROXY", "all"), ("CONTAINERD_HTTPS_PROXY", "own")], &expected);
        check("kube-apiserver", &[("KUBE_APISERVER_HTTPS_PROXY", "own"), ("HTTPS_PROXY", "all")], &expected);
        check("kube-apiserver", &[("KUBE-APISERVER_HTTPS_PROXY", "own"), ("HTTPS_PROXY", "all")], &expected);
    }

    #[test]
    fn bin_dir_leads_path_and_the_service_manager_stays_with_k0s() {
        check(
            "kubelet",
            &[("PATH", "/usr/bin:/bin"), ("NOTIFY_SOCKET", "/run/notify"), ("LANG", "C")],
            &[("LANG", "C"), ("PATH", "/k0s/bin:/usr/bin:/bin"), MANAGED],
        );
    }
}
