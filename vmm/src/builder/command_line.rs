//! The guest kernel's command line.

use pouch_vmm_api::config::VmConfig;

use crate::arch::layout;

/// The parameters for every guest, with a reason for each.
const COMMON: &[&str] = &[
    // A panic ends the VM at once, as there is no screen.
    "panic=-1",
    // Reset through the keyboard controller, the one way that is emulated.
    "reboot=k",
    // KVM's clock is exact: do not measure it, do not watch it.
    "tsc=reliable",
    "clocksource=kvm-clock",
    // The interrupt controllers are KVM's: do not test the timer's line.
    "no_timer_check",
    // Entropy at once from the processor and the host, both of which are trusted already.
    "random.trust_cpu=on",
    // All CPUs are described, one starts; the agent brings the others up when they are wanted.
    "maxcpus=1",
    // The guest's root is the one range of persistent memory; its pages are used where they lie.
    "root=/dev/pmem0 rootfstype=erofs rootflags=dax=always ro",
    // One init: the agent.
    "init=/init",
    // Code that was linked for several processors stays so: to rewrite it for a single one touches
    // every page of the kernel.
    "noreplace-smp",
    // Containers find cgroup v2 only.
    "cgroup_no_v1=all",
    // Modules must not create interfaces by themselves, because the container uses the guest's network namespace.
    "fb_tunnels=none dummy.numdummies=0 ifb.numifbs=0 bonding.max_bonds=0",
    // Areas of processors in pages, not in 2 MiB: the kernel's bookkeeping of each further chunk, of which the first
    // comes before a container does, would take 4 MiB.
    "percpu_alloc=page",
    // Short grace periods, because mounts and namespaces are created and removed often.
    "rcupdate.rcu_expedited=1",
];

/// Bytes of guest memory for which the table of names of files (fs/dcache.c) has an entry. Linux has one
/// for 8 KiB, and zeroes them all at boot.
const MEMORY_PER_NAME: u64 = 32 << 10;
const MIB: u64 = 1 << 20;

/// A command line under construction.
pub struct CommandLine {
    words: Vec<String>,
    extra: Vec<String>,
}

impl CommandLine {
    /// The words that do not depend on devices.
    pub fn new(config: &VmConfig, console: bool) -> Self {
        let mut words: Vec<String> = COMMON.iter().map(|word| (*word).to_owned()).collect();
        words.push(format!("pouch_exit.port={:#x}", layout::EXIT_PORT));
        let names = u64::from(config.memory_mib) * MIB / MEMORY_PER_NAME;
        words.push(format!("dhash_entries={names} ihash_entries={}", names / 2));
        if console {
            words.push("console=ttyS0 earlyprintk=ttyS0".to_owned());
        } else {
            // They are not read, and each costs time.
            words.push("quiet 8250.nr_uarts=0".to_owned());
        }
        CommandLine { words, extra: config.kernel_arguments.clone() }
    }

    /// Describes a virtio device to the guest.
    pub fn add_virtio(&mut self, base: u64, irq: u32) {
        self.words.push(format!("virtio_mmio.device={}K@{base:#x}:{irq}", layout::VIRTIO_MMIO_SIZE / 1024));
    }

    /// The line.
    pub fn finish(self) -> String {
        [self.words, self.extra].concat().join(" ")
    }
}
