//! Where things are in guest-physical memory and in port space.
//!
//! ```text
//! 0x0000_6000  PVH start info and memory map
//! 0x0002_0000  kernel command line
//! 0x0009_fc00  end of conventional memory
//! 0x000f_0000  MP table (where a BIOS would have it)
//! 0x0010_0000  memory; the kernel's link address decides where it lies (16 MiB)
//! 0xc000_0000  virtio-mmio registers, one page each
//! 0xd000_0000  the guest root, read-only
//! 0xfec0_0000  IOAPIC
//! 0xfee0_0000  local APICs
//! 0xfffb_d000  TSS and identity map pages that KVM needs on Intel
//! 4 GiB        the rest of memory
//! ```

/// The PVH `hvm_start_info` structure.
pub const PVH_START_INFO: u64 = 0x6000;
/// The memory map that the start info points to.
pub const PVH_MEMORY_MAP: u64 = 0x7000;
/// The kernel command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes for the command line with its final NUL (COMMAND_LINE_SIZE of x86 Linux).
pub const COMMAND_LINE_SIZE: usize = 2048;
/// The end of conventional memory; what follows up to 1 MiB is reserved.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// The MP floating pointer structure, in the range that the kernel searches for it
/// (MultiProcessor Specification 1.4, section 4).
pub const MP_TABLE: u64 = 0xf_0000;
/// Bytes for the MP table: the rest of the BIOS range.
pub const MP_TABLE_SIZE: u64 = 0x1_0000;
/// Memory from here on is the guest's.
pub const HIGH_RAM_START: u64 = 0x10_0000;
/// Below 4 GiB there is no memory from here on.
pub const MMIO_GAP_START: u64 = 0xc000_0000;
/// Memory goes on here.
pub const HIGH_MEMORY_START: u64 = 1 << 32;
/// The registers of the first virtio device.
pub const VIRTIO_MMIO_BASE: u64 = MMIO_GAP_START;
/// Bytes of registers of each virtio device.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// The guest root. The guest sets up its memory map of such a range in units of 128 MiB.
pub const ROOT_START: u64 = 0xd000_0000;
/// Bytes of the largest guest root (512 MiB).
pub const ROOT_MAX_SIZE: u64 = 0x2000_0000;
/// The interrupt line of the first virtio device; the IOAPIC has 24 lines, and the ones below
/// belong to the timer, the PIC and the serial port.
pub const VIRTIO_IRQ_BASE: u32 = 5;
/// The last interrupt line.
pub const IRQ_MAX: u32 = 23;
/// The IOAPIC's registers.
pub const IOAPIC_BASE: u32 = 0xfec0_0000;
/// The local APICs' registers.
pub const LOCAL_APIC_BASE: u32 = 0xfee0_0000;
/// Three pages that KVM uses for real mode on Intel; the guest never sees them.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// A page that KVM uses for an identity map on Intel.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// The first serial port.
pub const SERIAL_PORT: u64 = 0x3f8;
/// Registers of the serial port.
pub const SERIAL_PORT_SIZE: u64 = 8;
/// Its interrupt line.
pub const SERIAL_IRQ: u32 = 4;
/// The keyboard controller, of which only the reset line exists.
pub const KEYBOARD_PORT: u64 = 0x60;
/// Registers of the keyboard controller (0x60 to 0x64).
pub const KEYBOARD_PORT_SIZE: u64 = 5;
/// The port through which the guest says why it ends (kernel-config/0001-pouch-exit.patch).
pub const EXIT_PORT: u64 = 0xf40;
/// Registers of the exit port: the reason, then the bytes of a message.
pub const EXIT_PORT_SIZE: u64 = 2;

const _: () = {
    assert!(PVH_START_INFO < PVH_MEMORY_MAP && PVH_MEMORY_MAP < COMMAND_LINE);
    assert!(COMMAND_LINE + (COMMAND_LINE_SIZE as u64) < LOW_MEMORY_END);
    assert!(MP_TABLE + MP_TABLE_SIZE <= HIGH_RAM_START);
    assert!(KVM_IDENTITY_MAP + 0x1000 == KVM_TSS);
    assert!(VIRTIO_MMIO_BASE + 64 * VIRTIO_MMIO_SIZE <= ROOT_START);
    assert!(ROOT_START + ROOT_MAX_SIZE <= IOAPIC_BASE as u64);
};

/// Where the registers of a virtio device are.
pub const fn virtio_base(number: usize) -> u64 {
    VIRTIO_MMIO_BASE + number as u64 * VIRTIO_MMIO_SIZE
}

/// The interrupt line of a virtio device, of which there are [`MAX_VIRTIO_DEVICES`].
pub const fn virtio_irq(number: usize) -> u32 {
    VIRTIO_IRQ_BASE + number as u32
}

/// The most virtio devices of a VM: one interrupt line each.
pub const MAX_VIRTIO_DEVICES: usize = (IRQ_MAX - VIRTIO_IRQ_BASE + 1) as usize;
