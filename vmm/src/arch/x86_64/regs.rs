//! Initial registers of a vCPU.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::layout::PVH_START_INFO;

/// Protection enabled: the one bit of CR0 that PVH wants (ET is always 1).
const CR0_PE_ET: u64 = 0x11;
/// The x87 control word after FNINIT.
const FPU_CONTROL_WORD: u16 = 0x37f;
/// MXCSR after reset.
const MXCSR_DEFAULT: u32 = 0x1f80;

/// Registers could not be read or set.
#[derive(Debug, thiserror::Error)]
#[error("the {kind} registers of a vCPU could not be set")]
pub struct RegistersError {
    kind: &'static str,
    source: kvm_ioctls::Error,
}

fn error(kind: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> RegistersError {
    move |source| RegistersError { kind, source }
}

/// Lets the boot vCPU start at `entry` as the PVH boot protocol asks
/// (Xen's docs/misc/pvh.pandoc: 32-bit protected mode, flat segments, no paging, EBX points to
/// the start info).
///
/// # Errors
/// [`RegistersError`] if KVM refuses.
pub fn enter_pvh(vcpu: &VcpuFd, entry: u64) -> Result<(), RegistersError> {
    let fpu = kvm_fpu { fcw: FPU_CONTROL_WORD, mxcsr: MXCSR_DEFAULT, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(error("floating-point"))?;

    let mut sregs = vcpu.get_sregs().map_err(error("special"))?;
    // Types: Intel SDM volume 3A, section 3.4.5.1 (code, data) and 3.5 (task state).
    sregs.cs = flat(0xb, true);
    let data = flat(0x3, true);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, g: 0, db: 0, ..flat(0xb, false) };
    sregs.cr0 = CR0_PE_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs).map_err(error("special"))?;

    let regs = kvm_regs {
        // Bit 1 of RFLAGS is always set.
        rflags: 2,
        rip: entry,
        rbx: PVH_START_INFO,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(error("general"))
}

/// A segment of 4 GiB from 0.
fn flat(kind: u8, code_or_data: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 0,
        type_: kind,
        present: 1,
        dpl: 0,
        db: 1,
        s: u8::from(code_or_data),
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}
