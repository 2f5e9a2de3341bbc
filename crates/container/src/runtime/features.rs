//! `features`: what this runtime can do, in the form of the specification.

use serde_json::{Value, json};

use crate::process::caps;
use crate::rootfs::options;
use crate::seccomp::{ACTIONS, ARCHITECTURES, FLAGS, OPERATORS};

/// The description.
pub fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": crate::spec::OCI_VERSION,
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart",
            "poststop",
        ],
        "mountOptions": options::known(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": &caps::NAMES[..],
            "cgroup": {
                "v1": true,
                "v2": true,
                "systemd": false,
                "systemdUser": false,
                "rdma": true,
            },
            "seccomp": {
                "enabled": true,
                "actions": names(&ACTIONS),
                "operators": names(&OPERATORS),
                "archs": names(&ARCHITECTURES),
                "knownFlags": names(&FLAGS),
                "supportedFlags": names(&FLAGS),
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": true } },
        },
        "annotations": {
            "org.guise.landlock.read": "paths, separated by colons, that may be read",
            "org.guise.landlock.write": "paths, separated by colons, that may be changed",
            "org.guise.landlock.bind": "TCP ports, separated by commas, to listen on",
            "org.guise.landlock.connect": "TCP ports, separated by commas, to connect to",
        },
        "potentiallyUnsafeConfigAnnotations": [],
    })
}

/// The names of a table.
fn names<T>(table: &[(&'static str, T)]) -> Vec<&'static str> {
    table.iter().map(|(name, _)| *name).collect()
}
