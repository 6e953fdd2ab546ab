//! Sets exactly the capabilities of the specification, as the last step before the program is executed.
//!
//! A specification without capabilities means none, and ambient capabilities must be granted or cause an
//! error. libcontainer keeps all capabilities in the first case, and ignores errors in the second.

use std::io;

use libcontainer::capabilities::CapabilityExt;
use oci_spec::runtime::{Capabilities, LinuxCapabilities};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// The sets as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Masks {
    bounding: u64,
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

impl Masks {
    /// The sets of a specification; none where it says nothing.
    pub fn of(capabilities: Option<&LinuxCapabilities>) -> Self {
        let Some(sets) = capabilities else { return Self::default() };
        Self {
            bounding: mask(sets.bounding()),
            effective: mask(sets.effective()),
            permitted: mask(sets.permitted()),
            inheritable: mask(sets.inheritable()),
            ambient: mask(sets.ambient()),
        }
    }
}

fn mask(set: &Option<Capabilities>) -> u64 {
    set.iter().flatten().fold(0, |mask, capability| mask | (1 << capability.to_cap().index()))
}

/// Makes every permitted capability effective, as after a change of the user.
pub fn raise() -> io::Result<()> {
    let sets = capabilities(None)?;
    Ok(set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets })?)
}

/// Gives up everything that is not in the sets.
pub fn apply(masks: Masks) -> io::Result<()> {
    for number in 0..64_u64 {
        if masks.bounding & (1 << number) != 0 {
            continue;
        }
        // Numbers beyond the kernel's last one end the loop.
        match prctl(libc::PR_CAPBSET_DROP, number, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            result => result?,
        }
    }
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)?;
    let set = CapabilitySet::from_bits_retain;
    let sets = CapabilitySets {
        effective: set(masks.effective),
        permitted: set(masks.permitted),
        inheritable: set(masks.inheritable),
    };
    set_capabilities(None, sets)?;
    for number in (0..64_u64).filter(|number| masks.ambient & (1 << number) != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, number)?;
    }
    Ok(())
}

fn prctl(option: libc::c_int, second: u64, third: u64) -> io::Result<()> {
    // SAFETY: both options take plain numbers and touch no memory.
    match unsafe { libc::prctl(option, second, third, 0_u64, 0_u64) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_become_masks() {
        let json = r#"{"bounding":["CAP_CHOWN","CAP_SYS_ADMIN"],"effective":["CAP_CHECKPOINT_RESTORE"]}"#;
        let masks = Masks::of(Some(&serde_json::from_str(json).unwrap()));
        assert_eq!((masks.bounding, masks.effective, masks.permitted), (1 | (1 << 21), 1 << 40, 0));
        assert_eq!(Masks::of(None), Masks::default());
    }
}
