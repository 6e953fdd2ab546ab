//! Sets the limits of a process from outside: in a user namespace, or as another user, the process could not
//! raise them itself.

use std::io;

use oci_spec::runtime::{PosixRlimit, PosixRlimitType};

/// Sets them; an error comes with the limit that it is about.
pub fn set(pid: i32, limits: &[PosixRlimit]) -> Result<(), (PosixRlimitType, io::Error)> {
    for limit in limits {
        let values = libc::rlimit64 { rlim_cur: limit.soft(), rlim_max: limit.hard() };
        // SAFETY: the new limit is live, and the old one is not asked for.
        let result =
            unsafe { libc::prlimit64(pid, number(limit.typ()), &raw const values, std::ptr::null_mut()) };
        if result < 0 {
            return Err((limit.typ(), io::Error::last_os_error()));
        }
    }
    Ok(())
}

fn number(kind: PosixRlimitType) -> libc::__rlimit_resource_t {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::resource::{Resource, getrlimit};

    #[test]
    fn limits_are_set_and_the_refused_one_is_named() {
        let limit = |text: &str| serde_json::from_str::<PosixRlimit>(text).unwrap();
        let core = limit(r#"{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}"#);
        let own = std::process::id() as i32;
        set(own, &[core]).unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
        let files =
            limit(r#"{"type": "RLIMIT_NOFILE", "soft": 18446744073709551615, "hard": 18446744073709551615}"#);
        let (kind, _) = set(own, &[core, files]).unwrap_err();
        assert_eq!(kind, PosixRlimitType::RlimitNofile);
    }
}
