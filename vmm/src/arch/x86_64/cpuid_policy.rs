//! The CPU features that a guest may see, as a table.
//!
//! The table starts from what KVM supports. Each rule clears or sets bits and gives a reason. Bits without a
//! rule stay as KVM reports them. Names are those of Intel's Software Developer's Manual, volume 2A, "CPUID",
//! and AMD's Architecture Programmer's Manual, volume 3, appendix E.

use kvm_bindings::kvm_cpuid_entry2;

/// A register of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

/// One rule, for all subleaves of a leaf.
#[derive(Debug)]
struct Rule {
    leaf: u32,
    register: Register,
    /// Bits that the guest does not see.
    clear: u32,
    /// Bits that the guest sees in any case.
    set: u32,
    #[allow(dead_code, reason = "for the reader; a test looks that it is there")]
    reason: &'static str,
}

const fn hide(leaf: u32, register: Register, clear: u32, reason: &'static str) -> Rule {
    Rule { leaf, register, clear, set: 0, reason }
}

const fn show(leaf: u32, register: Register, set: u32, reason: &'static str) -> Rule {
    Rule { leaf, register, clear: 0, set, reason }
}

const ALL: u32 = u32::MAX;

const RULES: &[Rule] = &[
    show(1, Ecx, 1 << 31, "HYPERVISOR: it is in a VM"),
    show(1, Ecx, 1 << 24, "TSC_DEADLINE: the only timer that it has; KVM's local APIC has it on every host"),
    hide(1, Ecx, 1 << 5, "VMX: nested virtualisation would hand the guest a large part of KVM to attack"),
    hide(1, Ecx, 1 << 6, "SMX: of the host's firmware"),
    hide(1, Ecx, 1 << 3, "MONITOR: a vCPU that waits would keep its processor"),
    hide(1, Ecx, 1 << 7 | 1 << 8, "EIST and TM2: power and heat are the host's"),
    hide(1, Edx, 1 << 22 | 1 << 29, "ACPI and TM: the same"),
    hide(1, Ecx, 1 << 2 | 1 << 4, "DTES64 and DS_CPL: no debug store, so neither BTS nor PEBS"),
    hide(1, Edx, 1 << 21, "DS: the same; IA32_MISC_ENABLE says so too (msr.rs)"),
    hide(1, Ecx, 1 << 15, "PDCM: no performance monitoring"),
    hide(5, Eax, ALL, "MONITOR is hidden"),
    hide(5, Ebx, ALL, "the same"),
    hide(5, Ecx, ALL, "the same"),
    hide(5, Edx, ALL, "the same"),
    hide(6, Eax, ALL, "power and heat are the host's"),
    show(
        6,
        Eax,
        1 << 2,
        "ARAT: KVM's APIC timer never stops; without it Linux looks for a PIT, and there is none",
    ),
    hide(6, Ebx, ALL, "power and heat are the host's"),
    hide(6, Ecx, ALL, "the same"),
    hide(6, Edx, ALL, "the same"),
    hide(7, Ebx, 1 << 2, "SGX: the VM has no enclave memory"),
    hide(7, Ecx, 1 << 30, "SGX_LC: the same"),
    hide(7, Ebx, 1 << 25, "INTEL_PT: no tracing"),
    hide(7, Edx, 1 << 19, "ARCH_LBR: no performance monitoring"),
    hide(0xa, Eax, ALL, "no performance monitoring: the counters are the host's"),
    hide(0xa, Ebx, ALL, "the same"),
    hide(0xa, Ecx, ALL, "the same"),
    hide(0xa, Edx, ALL, "the same"),
    hide(0x12, Eax, ALL, "SGX is hidden"),
    hide(0x12, Ebx, ALL, "the same"),
    hide(0x12, Ecx, ALL, "the same"),
    hide(0x12, Edx, ALL, "the same"),
    hide(0x14, Eax, ALL, "INTEL_PT is hidden"),
    hide(0x14, Ebx, ALL, "the same"),
    hide(0x14, Ecx, ALL, "the same"),
    hide(0x14, Edx, ALL, "the same"),
    hide(0x1c, Eax, ALL, "ARCH_LBR is hidden"),
    hide(0x1c, Ebx, ALL, "the same"),
    hide(0x1c, Ecx, ALL, "the same"),
    hide(0x1c, Edx, ALL, "the same"),
    hide(0x8000_0001, Ecx, 1 << 2, "SVM: as VMX"),
    hide(0x8000_0001, Ecx, 1 << 23 | 1 << 24 | 1 << 28, "PERFCTR_CORE, PERFCTR_NB, PERFCTR_LLC: no counters"),
    hide(0x8000_0001, Ecx, 1 << 10 | 1 << 15, "IBS and LWP: no performance monitoring"),
    hide(0x8000_000a, Eax, ALL, "SVM is hidden"),
    hide(0x8000_000a, Ebx, ALL, "the same"),
    hide(0x8000_000a, Ecx, ALL, "the same"),
    hide(0x8000_000a, Edx, ALL, "the same"),
    hide(0x8000_001b, Eax, ALL, "IBS is hidden"),
    hide(0x8000_0022, Eax, ALL, "PERFMON_V2: no performance monitoring"),
    hide(0x8000_0022, Ebx, ALL, "the same"),
];

/// Applies the rules to what KVM supports.
pub fn apply(entry: &mut kvm_cpuid_entry2) {
    for rule in RULES.iter().filter(|rule| rule.leaf == entry.function) {
        let value = match rule.register {
            Eax => &mut entry.eax,
            Ebx => &mut entry.ebx,
            Ecx => &mut entry.ecx,
            Edx => &mut entry.edx,
        };
        *value = *value & !rule.clear | rule.set;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest sees of a leaf on a host whose answer has all bits of all registers like this.
    fn seen(leaf: u32, bits: u32) -> [u32; 4] {
        let mut entry = kvm_cpuid_entry2 {
            function: leaf,
            eax: bits,
            ebx: bits,
            ecx: bits,
            edx: bits,
            ..Default::default()
        };
        apply(&mut entry);
        [entry.eax, entry.ebx, entry.ecx, entry.edx]
    }

    #[test]
    fn each_leaf_has_what_the_policy_says_on_the_best_and_the_least_host() {
        // Leaf, what is left of all bits, and what is there without any: EAX, EBX, ECX, EDX.
        let leaves = [
            (1, [ALL, ALL, !0x81fc, !0x2060_0000], [0, 0, 0x8100_0000, 0]),
            (5, [0; 4], [0; 4]),
            (6, [4, 0, 0, 0], [4, 0, 0, 0]),
            (7, [ALL, !0x0200_0004, !0x4000_0000, !0x0008_0000], [0; 4]),
            (0xa, [0; 4], [0; 4]),
            (0xd, [ALL; 4], [0; 4]),
            (0x12, [0; 4], [0; 4]),
            (0x14, [0; 4], [0; 4]),
            (0x1c, [0; 4], [0; 4]),
            (0x4000_0001, [ALL; 4], [0; 4]),
            (0x8000_0001, [ALL, ALL, !0x1180_8404, ALL], [0; 4]),
            (0x8000_000a, [0; 4], [0; 4]),
            (0x8000_001b, [0, ALL, ALL, ALL], [0; 4]),
            (0x8000_0022, [0, 0, ALL, ALL], [0; 4]),
        ];
        for (leaf, best, least) in leaves {
            assert_eq!(seen(leaf, ALL), best, "leaf {leaf:#x} of a host with everything");
            assert_eq!(seen(leaf, 0), least, "leaf {leaf:#x} of a host with nothing");
        }
        for rule in RULES {
            assert!(leaves.iter().any(|(leaf, ..)| *leaf == rule.leaf), "{rule:?} is not tested");
            assert!(!rule.reason.is_empty());
        }
    }
}
