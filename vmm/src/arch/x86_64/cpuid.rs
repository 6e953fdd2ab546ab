//! CPUID for the guest: what KVM supports, without features that a small VM does not need, and with the VM's
//! topology.
//!
//! Leaves are those of Intel's Software Developer's Manual, volume 2A, "CPUID", and AMD's Architecture
//! Programmer's Manual, volume 3, appendix E. The KVM leaves are in the kernel's
//! Documentation/virt/kvm/x86/cpuid.rst.

use super::cpuid_policy;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The CPUID table could not be built.
#[derive(Debug, thiserror::Error)]
#[error("the CPUID table has more entries than KVM supports")]
pub struct TooManyEntriesError;

/// Leaf 1, EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// KVM's feature leaf.
const KVM_FEATURES: u32 = 0x4000_0001;
/// KVM's timing leaf: EAX is the TSC frequency, EBX that of the APIC bus, in kHz.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// The frequency at which KVM's local APIC counts, in kHz (1 GHz).
const APIC_BUS_KHZ: u32 = 1_000_000;

/// The shape of the VM's processor, as one vCPU sees it.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// This vCPU's index, which is its APIC identifier too.
    pub index: u8,
    /// vCPUs of the VM: cores of one package, each with one thread.
    pub count: u8,
    /// The TSC's frequency in kHz, if KVM knows it.
    pub tsc_khz: Option<u32>,
}

/// What the vCPU that `topology` names shall see, from what KVM supports.
///
/// # Errors
/// [`TooManyEntriesError`] if the description outgrows KVM's limit.
pub fn for_vcpu(supported: &CpuId, topology: Topology) -> Result<CpuId, TooManyEntriesError> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported.as_slice().to_vec();
    // Replaced below by the VM's own.
    entries.retain(|entry| !matches!(entry.function, 0xb | 0x15 | 0x1f | 0x8000_001e | HYPERVISOR_TIMING));
    for entry in &mut entries {
        cpuid_policy::apply(entry);
        describe_topology(entry, topology);
    }
    push_extended_topology(&mut entries, topology);
    if let Some(khz) = topology.tsc_khz {
        push_timing(&mut entries, khz);
    }
    CpuId::from_entries(&entries).map_err(|_| TooManyEntriesError)
}

/// The identifiers and counts of processors that leaves have among other things.
fn describe_topology(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    let index = u32::from(topology.index);
    let count = u32::from(topology.count);
    match entry.function {
        1 => {
            entry.ebx = (entry.ebx & 0x0000_ffff) | (count.next_power_of_two() << 16) | (index << 24);
            entry.edx = if count > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Intel's cache leaf: which processors share a cache, and how many cores there are.
        4 if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { count.next_power_of_two() - 1 } else { 0 };
            let cores = count.next_power_of_two() - 1;
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | (cores.min(0x3f) << 26);
        }
        // AMD: threads in the package less one, and the bits of the APIC identifier for them.
        0x8000_0008 => entry.ecx = (count - 1) | (core_bits(topology) << 12),
        // AMD's cache leaf, as leaf 4.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { count - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14);
        }
        _ => {}
    }
}

/// Bits of the APIC identifier that tell the cores apart.
fn core_bits(topology: Topology) -> u32 {
    u32::from(topology.count).next_power_of_two().trailing_zeros()
}

/// Leaves 0xb (Intel, and what Linux reads on AMD) and 0x8000_001e (AMD).
fn push_extended_topology(entries: &mut Vec<kvm_cpuid_entry2>, topology: Topology) {
    const LEVEL_THREAD: u32 = 1;
    const LEVEL_CORE: u32 = 2;
    let index = u32::from(topology.index);
    let levels = [
        // One thread a core: no bits, one processor.
        (0, 1, LEVEL_THREAD << 8),
        (core_bits(topology), u32::from(topology.count), (LEVEL_CORE << 8) | 1),
    ];
    for (subleaf, (shift, processors, level)) in (0..).zip(levels) {
        entries.push(kvm_cpuid_entry2 {
            function: 0xb,
            index: subleaf,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: processors,
            ecx: level,
            edx: index,
            ..Default::default()
        });
    }
    entries.push(kvm_cpuid_entry2 { function: 0x8000_001e, eax: index, ebx: index, ..Default::default() });
}

/// Leaf 0x15 and KVM's timing leaf, so that no guest has to measure a frequency.
fn push_timing(entries: &mut Vec<kvm_cpuid_entry2>, tsc_khz: u32) {
    const CRYSTAL_HZ: u32 = 1_000_000;
    entries.push(kvm_cpuid_entry2 {
        function: 0x15,
        // TSC frequency = crystal * EBX / EAX.
        eax: 1000,
        ebx: tsc_khz,
        ecx: CRYSTAL_HZ,
        ..Default::default()
    });
    entries.push(kvm_cpuid_entry2 {
        function: HYPERVISOR_TIMING,
        eax: tsc_khz,
        ebx: APIC_BUS_KHZ,
        ..Default::default()
    });
    // The hypervisor's first leaf tells the last one that it has.
    for entry in entries.iter_mut().filter(|entry| entry.function == KVM_FEATURES - 1) {
        entry.eax = entry.eax.max(HYPERVISOR_TIMING);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuId {
        let leaf =
            |function, index, eax, ecx| kvm_cpuid_entry2 { function, index, eax, ecx, ..Default::default() };
        CpuId::from_entries(&[
            leaf(1, 0, 0, 1),
            leaf(4, 0, 0x21, 0),
            leaf(4, 3, 0x63, 0),
            leaf(0xb, 0, 9, 9),
            leaf(0x4000_0000, 0, 0x4000_0001, 0),
            leaf(0x8000_0001, 0, 0, 1),
        ])
        .unwrap()
    }

    fn of(index: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
        let topology = Topology { index, count, tsc_khz: Some(2_500_000) };
        for_vcpu(&supported(), topology).unwrap().as_slice().to_vec()
    }

    fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn each_vcpu_has_its_identifier_in_every_leaf() {
        for index in [0, 3, 63] {
            let entries = of(index, 64);
            assert_eq!(leaf(&entries, 1, 0).ebx >> 24, u32::from(index));
            assert_eq!(leaf(&entries, 0xb, 0).edx, u32::from(index));
            assert_eq!(leaf(&entries, 0xb, 1).edx, u32::from(index));
            assert_eq!(leaf(&entries, 0x8000_001e, 0).eax, u32::from(index));
        }
    }

    #[test]
    fn the_package_has_one_thread_a_core() {
        let entries = of(0, 3);
        assert_eq!(leaf(&entries, 0xb, 0).ebx, 1);
        assert_eq!((leaf(&entries, 0xb, 1).eax, leaf(&entries, 0xb, 1).ebx), (2, 3));
        assert_eq!(leaf(&entries, 4, 0).eax >> 14 & 0xfff, 0, "the first-level cache is a core's own");
        assert_eq!(leaf(&entries, 4, 3).eax >> 14 & 0xfff, 3, "the last-level cache is shared");
    }

    #[test]
    fn frequencies_are_told() {
        let entries = of(0, 1);
        assert_eq!(leaf(&entries, HYPERVISOR_TIMING, 0).eax, 2_500_000);
        assert_eq!(leaf(&entries, 0x4000_0000, 0).eax, HYPERVISOR_TIMING);
        let crystal = leaf(&entries, 0x15, 0);
        assert_eq!(u64::from(crystal.ecx) * u64::from(crystal.ebx) / u64::from(crystal.eax), 2_500_000_000);
    }
}
