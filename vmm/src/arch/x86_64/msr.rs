//! Initial model-specific registers of a vCPU.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// IA32_MISC_ENABLE (Intel SDM volume 4, table 2-2).
const MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations on.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// Neither branch trace store nor processor event based sampling, as CPUID has no debug store.
const MISC_ENABLE_BTS_UNAVAILABLE: u64 = 1 << 11;
const MISC_ENABLE_PEBS_UNAVAILABLE: u64 = 1 << 12;
/// IA32_MTRR_DEF_TYPE.
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled, memory is write-back unless a range says otherwise.
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;
/// IA32_TSC.
const TSC: u32 = 0x10;

/// The registers that are set, and their values.
const VALUES: [(u32, u64); 3] = [
    (TSC, 0),
    (MISC_ENABLE, MISC_ENABLE_FAST_STRING | MISC_ENABLE_BTS_UNAVAILABLE | MISC_ENABLE_PEBS_UNAVAILABLE),
    // Without it all memory is uncached for a kernel that trusts the MTRRs.
    (MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
];

/// The registers could not be set.
#[derive(Debug, thiserror::Error)]
pub enum MsrError {
    /// KVM refused the call.
    #[error("KVM refused the model-specific registers")]
    Set(#[source] kvm_ioctls::Error),
    /// KVM refused one register.
    #[error("KVM refused model-specific register {0:#x}")]
    Refused(u32),
    /// The list is longer than KVM takes.
    #[error("the list of model-specific registers is too long")]
    TooMany,
}

/// Sets the registers that a kernel finds set after firmware.
///
/// # Errors
/// [`MsrError`] names the register that KVM refuses.
pub fn setup(vcpu: &VcpuFd) -> Result<(), MsrError> {
    let entries: Vec<kvm_msr_entry> =
        VALUES.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    let msrs = Msrs::from_entries(&entries).map_err(|_| MsrError::TooMany)?;
    let set = vcpu.set_msrs(&msrs).map_err(MsrError::Set)?;
    match entries.get(set) {
        None => Ok(()),
        Some(refused) => Err(MsrError::Refused(refused.index)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_debug_store_in_cpuid_nor_here() {
        // Bits of the manual: fast strings, "branch trace storage unavailable", the same of event based sampling.
        let misc = VALUES.iter().find(|(register, _)| *register == 0x1a0).map(|(_, value)| *value);
        assert_eq!(misc, Some(1 | 1 << 11 | 1 << 12));
    }
}
