//! Which path is which method.

use prost_reflect::MethodDescriptor;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Paths below `/v3/`, by service.
const PATHS: [(&str, &[(&str, &str)]); 8] = [
    (
        "etcdserverpb.KV",
        &[
            ("kv/range", "Range"),
            ("kv/put", "Put"),
            ("kv/deleterange", "DeleteRange"),
            ("kv/txn", "Txn"),
            ("kv/compaction", "Compact"),
        ],
    ),
    ("etcdserverpb.Watch", &[("watch", "Watch")]),
    (
        "etcdserverpb.Lease",
        &[
            ("lease/grant", "LeaseGrant"),
            ("lease/revoke", "LeaseRevoke"),
            ("kv/lease/revoke", "LeaseRevoke"),
            ("lease/keepalive", "LeaseKeepAlive"),
            ("lease/timetolive", "LeaseTimeToLive"),
            ("kv/lease/timetolive", "LeaseTimeToLive"),
            ("lease/leases", "LeaseLeases"),
            ("kv/lease/leases", "LeaseLeases"),
        ],
    ),
    (
        "etcdserverpb.Cluster",
        &[
            ("cluster/member/add", "MemberAdd"),
            ("cluster/member/remove", "MemberRemove"),
            ("cluster/member/update", "MemberUpdate"),
            ("cluster/member/list", "MemberList"),
            ("cluster/member/promote", "MemberPromote"),
        ],
    ),
    (
        "etcdserverpb.Maintenance",
        &[
            ("maintenance/alarm", "Alarm"),
            ("maintenance/status", "Status"),
            ("maintenance/defragment", "Defragment"),
            ("maintenance/hash", "Hash"),
            ("maintenance/hashkv", "HashKV"),
            ("maintenance/snapshot", "Snapshot"),
            ("maintenance/transfer-leadership", "MoveLeader"),
            ("maintenance/downgrade", "Downgrade"),
        ],
    ),
    (
        "etcdserverpb.Auth",
        &[
            ("auth/enable", "AuthEnable"),
            ("auth/disable", "AuthDisable"),
            ("auth/status", "AuthStatus"),
            ("auth/authenticate", "Authenticate"),
            ("auth/user/add", "UserAdd"),
            ("auth/user/get", "UserGet"),
            ("auth/user/list", "UserList"),
            ("auth/user/delete", "UserDelete"),
            ("auth/user/changepw", "UserChangePassword"),
            ("auth/user/grant", "UserGrantRole"),
            ("auth/user/revoke", "UserRevokeRole"),
            ("auth/role/add", "RoleAdd"),
            ("auth/role/get", "RoleGet"),
            ("auth/role/list", "RoleList"),
            ("auth/role/delete", "RoleDelete"),
            ("auth/role/grant", "RoleGrantPermission"),
            ("auth/role/revoke", "RoleRevokePermission"),
        ],
    ),
    ("v3lockpb.Lock", &[("lock/lock", "Lock"), ("lock/unlock", "Unlock")]),
    (
        "v3electionpb.Election",
        &[
            ("election/campaign", "Campaign"),
            ("election/proclaim", "Proclaim"),
            ("election/leader", "Leader"),
            ("election/observe", "Observe"),
            ("election/resign", "Resign"),
        ],
    ),
];

static METHODS: LazyLock<HashMap<&'static str, MethodDescriptor>> = LazyLock::new(|| {
    let mut methods = HashMap::new();
    for (service, paths) in PATHS {
        let service =
            proto::descriptors::pool().get_service_by_name(service).expect("the contract has these services");
        for (path, name) in paths {
            let method = service.methods().find(|method| method.name() == *name);
            methods.insert(*path, method.expect("the contract has these methods"));
        }
    }
    methods
});

/// The method of a path such as `/v3/kv/range`.
pub fn method(path: &str) -> Option<&'static MethodDescriptor> {
    METHODS.get(path.strip_prefix("/v3/").or_else(|| path.strip_prefix("/v3beta/"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_two_prefixes() {
        let name = |path| method(path).map(|method| method.name());
        assert_eq!([name("/v3/kv/range"), name("/v3beta/kv/range")], [Some("Range"); 2]);
        assert_eq!([name("/v3alpha/kv/range"), name("/kv/range")], [None; 2]);
    }

    #[test]
    fn the_documentation_has_every_method_with_its_paths() {
        let page = include_str!("../../../../docs/api.md");
        let mut documented = Vec::new();
        for row in page.lines().filter_map(|line| line.strip_prefix("| `")) {
            let cells: Vec<_> = row.trim_end_matches('|').split('|').map(str::trim).collect();
            let [rpc, state, paths, _] = cells.as_slice() else { panic!("four cells: {row}") };
            assert!(["works", "refused"].contains(state), "{row}");
            let paths: Vec<_> = paths.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            documented.push((rpc.trim_end_matches('`').to_owned(), paths));
        }
        let mut known = Vec::new();
        for service in proto::descriptors::pool().services() {
            for method in service.methods() {
                let of_service = PATHS.iter().find(|(name, _)| *name == service.full_name());
                let paths = of_service.map_or(&[][..], |(_, paths)| *paths).iter();
                let paths =
                    paths.filter(|(_, name)| *name == method.name()).map(|(path, _)| (*path).to_owned());
                known.push((format!("{}/{}", service.full_name(), method.name()), paths.collect()));
            }
        }
        documented.sort();
        known.sort();
        assert_eq!(documented, known);
    }

    #[test]
    fn every_method_has_a_path_but_the_stream_of_ranges() {
        let mut without: Vec<String> = proto::descriptors::pool()
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>())
            .filter(|method| !METHODS.values().any(|known| known == method))
            .map(|method| method.full_name().to_owned())
            .collect();
        without.sort();
        assert_eq!(without, ["etcdserverpb.KV.RangeStream"]);
    }
}
