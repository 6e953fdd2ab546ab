//! Builds a VM from its description. No other code does.

mod command_line;
mod devices;

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_CAP_EXT_CPUID, KVM_CAP_IOEVENTFD, KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_CAP_IRQCHIP, KVM_CAP_IRQFD,
    KVM_CAP_PMU_CAPABILITY, KVM_CAP_READONLY_MEM, KVM_CAP_TSC_DEADLINE_TIMER, KVM_CAP_USER_MEMORY,
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KVM_PMU_CAP_DISABLE, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use pouch_vmm_api::config::{FileSource, VmConfig};
use pouch_vmm_api::inherited::Inherited;
use pouch_vmm_api::restricted::Access;
use vm_memory::{GuestMemory, GuestMemoryRegion};

use crate::arch::layout;
use crate::arch::x86_64::{cpuid, kernel, mptable, msr, pvh, regs};
use crate::attach::{DeviceError, Slots};
use crate::bus::Bus;
use crate::devices::exit_port::ExitPort;
use crate::devices::keyboard::Keyboard;
use crate::devices::virtio::fs::ShareRoot;
use crate::event_loop::EventLoop;
use crate::exit_signal::ExitSignal;
use crate::jail::seccomp::ThreadKind;
use crate::memory::{self, Memory};
use crate::root::{self, MappedRoot};
use crate::vcpu::{Buses, Vcpus};
use crate::vm::Vm;

/// A VM could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file of the description could not be opened.
    #[error("{field} ({name}) could not be opened")]
    Open {
        /// The description's field.
        field: &'static str,
        /// The file.
        name: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The KVM device is not usable.
    #[error("{0} is not a KVM device")]
    NotKvm(String),
    /// KVM lacks something.
    #[error("KVM on this host lacks {0}")]
    MissingCapability(&'static str),
    /// KVM refused a step.
    #[error("KVM could not {step}")]
    Kvm {
        /// The step.
        step: &'static str,
        /// KVM's error.
        source: kvm_ioctls::Error,
    },
    /// No memory.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// The kernel could not be loaded.
    #[error(transparent)]
    Kernel(#[from] kernel::LoadError),
    /// The root could not be mapped.
    #[error(transparent)]
    Root(#[from] root::RootError),
    /// The boot information could not be written.
    #[error(transparent)]
    BootInfo(#[from] pvh::BootInfoError),
    /// The MP table could not be written.
    #[error("the table of processors could not be written to guest memory")]
    MpTable(#[source] vm_memory::GuestMemoryError),
    /// A device could not be created.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A vCPU could not be described.
    #[error("vCPU {index} could not be set up")]
    Vcpu {
        /// The vCPU.
        index: u8,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A thread could not be started.
    #[error(transparent)]
    Thread(#[from] crate::vcpu::VcpuThreadError),
}

/// The files of a description, opened before the process is confined.
pub struct Files {
    kvm: Named,
    kernel: Named,
    root: Named,
    memory: File,
    console: Option<File>,
    blocks: Vec<File>,
}

/// A file and its name for messages, which cannot be determined after confinement.
struct Named {
    file: File,
    name: String,
}

impl Files {
    /// Opens every file of the description, and makes the one behind guest memory.
    ///
    /// # Errors
    /// [`BootError::Open`] names the field and the file.
    pub fn open(config: &VmConfig, inherited: &mut Inherited) -> Result<Self, BootError> {
        let mut named = |field, source: &FileSource, access| {
            // While the descriptor is open: its name is read through it.
            let name = source.to_string();
            match source.open(inherited, access) {
                Ok(file) => Ok(Named { file, name }),
                Err(source) => Err(BootError::Open { field, name, source }),
            }
        };
        let kvm = named("kvm", &config.kvm, Access::Write)?;
        let kernel = named("kernel", &config.kernel, Access::Read)?;
        let root = named("root", &config.root, Access::Read)?;
        let console =
            config.console.as_ref().map(|file| named("console", file, Access::Write)).transpose()?;
        let mut blocks = Vec::new();
        for block in &config.blocks {
            let access = if block.read_only { Access::Read } else { Access::Write };
            blocks.push(named("blocks.file", &block.file, access)?.file);
        }
        let memory = memory::file(config.memory_mib)?;
        Ok(Files { kvm, kernel, root, memory, console: console.map(|named| named.file), blocks })
    }
}

/// Converts an error of a KVM call, with the step that failed.
fn step(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> BootError {
    move |source| BootError::Kvm { step, source }
}

/// Builds a VM that is about to boot; it does not run until it is resumed. Devices that need no
/// threads are added to `event_loop`.
///
/// # Errors
/// [`BootError`] names the file, device or step.
pub fn boot(
    config: &VmConfig,
    files: Files,
    share: Option<ShareRoot>,
    exit: Arc<ExitSignal>,
    event_loop: &mut EventLoop,
) -> Result<Arc<Vm>, BootError> {
    let Files { kvm, kernel, root, memory, console, blocks } = files;
    let kvm = open_kvm(kvm)?;
    let fd = Arc::new(create_vm(&kvm)?);
    let memory = Arc::new(memory::map(&memory, config.memory_mib)?);
    let root = root::map(&root.file, &root.name)?;
    map_memory(&fd, &memory, root)?;

    let mut ports = legacy_ports(&exit)?;
    let mut mmio = Bus::default();
    let mut command_line = command_line::CommandLine::new(config, console.is_some());
    let mut attach = devices::Attach {
        fd: &fd,
        memory: &memory,
        ports: &mut ports,
        mmio: &mut mmio,
        event_loop,
        command_line: &mut command_line,
        count: 0,
    };
    if let Some(output) = console {
        attach.serial(output)?;
    }
    let vsock = attach.vsock(config.vsock_cid)?;
    if let (Some(root), Some(share)) = (share, &config.share) {
        attach.share(root, &share.tag)?;
    }
    for (block, file) in config.blocks.iter().zip(blocks) {
        attach.block(file, block)?;
    }
    let balloon = attach.balloon()?;
    attach.rng()?;
    // After all other devices, whose numbers are lower.
    let mut free = |count| (0..count).map(|_| attach.slot()).collect::<Result<Vec<_>, _>>();
    let (for_networks, for_disks) = (free(config.network_slots)?, free(config.disk_slots)?);

    let entry = kernel::load(&memory, &kernel.file, &kernel.name)?;
    pvh::write_boot_info(&memory, &command_line.finish(), root.size)?;
    mptable::write(&memory, config.vcpus).map_err(BootError::MpTable)?;

    let vcpus = create_vcpus(&kvm, &fd, config.vcpus, entry.0)?;
    let buses = Buses { ports: Arc::new(ports), mmio: Arc::new(mmio) };
    let vcpus = Vcpus::start(vcpus, &buses, &exit, || ThreadKind::Vcpu.enter())?;
    let slots = Slots::new(fd, memory.clone(), event_loop.joiner(), for_networks, for_disks)?;
    Ok(Arc::new(Vm { memory, vcpus, exit, vsock, balloon, nets: Mutex::default(), slots: Mutex::new(slots) }))
}

/// Takes the KVM device over and checks that it has what every VM needs.
fn open_kvm(Named { file, name }: Named) -> Result<Kvm, BootError> {
    use std::os::fd::{FromRawFd, IntoRawFd};
    // SAFETY: the descriptor is open, and ownership goes over to the new object.
    let kvm = unsafe { Kvm::from_raw_fd(file.into_raw_fd()) };
    const STABLE_API: i32 = 12;
    if kvm.get_api_version() != STABLE_API {
        return Err(BootError::NotKvm(name));
    }
    match missing(|capability| kvm.check_extension_raw(capability.into())) {
        None => Ok(kvm),
        Some(name) => Err(BootError::MissingCapability(name)),
    }
}

/// The first capability that every VM needs and that KVM lacks; `check` is what KVM says of each.
fn missing(check: impl Fn(u32) -> i32) -> Option<&'static str> {
    let needed = [
        (KVM_CAP_IRQCHIP, "an interrupt controller (KVM_CAP_IRQCHIP)"),
        (KVM_CAP_IRQFD, "irqfd (KVM_CAP_IRQFD)"),
        (KVM_CAP_IOEVENTFD, "ioeventfd (KVM_CAP_IOEVENTFD)"),
        (KVM_CAP_IOEVENTFD_ANY_LENGTH, "ioeventfd of any length (KVM_CAP_IOEVENTFD_ANY_LENGTH)"),
        (KVM_CAP_USER_MEMORY, "user memory regions (KVM_CAP_USER_MEMORY)"),
        (KVM_CAP_READONLY_MEM, "read-only memory regions (KVM_CAP_READONLY_MEM)"),
        (KVM_CAP_EXT_CPUID, "CPUID control (KVM_CAP_EXT_CPUID)"),
        (KVM_CAP_TSC_DEADLINE_TIMER, "the TSC deadline timer (KVM_CAP_TSC_DEADLINE_TIMER)"),
    ];
    needed.into_iter().find(|(capability, _)| check(*capability) <= 0).map(|(_, name)| name)
}

/// Disables the guest's performance counters: CPUID cannot hide those of AMD's first generation. Linux before 5.18
/// does not support this.
fn disable_pmu(fd: &VmFd) -> Result<(), BootError> {
    match without_pmu(fd.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into())) {
        Some(capability) => fd.enable_cap(&capability).map_err(step("disable the performance counters")),
        None => Ok(()),
    }
}

/// The request that disables them, if `supported`, which KVM says of the capability, has it.
fn without_pmu(supported: i32) -> Option<kvm_enable_cap> {
    let mut capability = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..Default::default() };
    capability.args[0] = KVM_PMU_CAP_DISABLE.into();
    (supported > 0).then_some(capability)
}

/// The order is KVM's: the TSS and identity map addresses come before any vCPU (Intel), the
/// interrupt controller before any vCPU too, since a vCPU gets its local APIC when it is made.
/// There is no interval timer (PIT): the guest is told the frequency of its TSC and has the local
/// APIC's deadline timer, so it never asks for one.
fn create_vm(kvm: &Kvm) -> Result<VmFd, BootError> {
    let fd = kvm.create_vm().map_err(step("create a VM"))?;
    let tss = layout::KVM_TSS as usize;
    fd.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(step("place its identity map"))?;
    fd.set_tss_address(tss).map_err(step("place its task state segment"))?;
    fd.create_irq_chip().map_err(step("create the interrupt controller"))?;
    disable_pmu(&fd)?;
    Ok(fd)
}

fn map_memory(fd: &VmFd, memory: &Memory, root: MappedRoot) -> Result<(), BootError> {
    let mut regions: Vec<_> = memory
        .iter()
        .map(|region| kvm_userspace_memory_region {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            ..Default::default()
        })
        .collect();
    regions.push(kvm_userspace_memory_region {
        flags: KVM_MEM_READONLY,
        guest_phys_addr: layout::ROOT_START,
        memory_size: root.size,
        userspace_addr: root.address as u64,
        ..Default::default()
    });
    for (slot, region) in (0..).zip(regions) {
        let region = kvm_userspace_memory_region { slot, ..region };
        // SAFETY: each mapping is as long as its region says, and stays until the process ends.
        unsafe { fd.set_user_memory_region(region) }.map_err(step("map guest memory"))?;
    }
    Ok(())
}

fn legacy_ports(exit: &Arc<ExitSignal>) -> Result<Bus, DeviceError> {
    let mut ports = Bus::default();
    let exit_port = Arc::new(Mutex::new(ExitPort::new(exit.clone())));
    ports.insert(layout::EXIT_PORT, layout::EXIT_PORT_SIZE, exit_port)?;
    let keyboard = Arc::new(Mutex::new(Keyboard::new(exit.clone())));
    ports.insert(layout::KEYBOARD_PORT, layout::KEYBOARD_PORT_SIZE, keyboard)?;
    Ok(ports)
}

/// The order is KVM's: CPUID first, since it decides which model-specific registers and which
/// bits of the control registers a vCPU has. Only the boot vCPU gets registers: the others wait
/// for its INIT and SIPI.
fn create_vcpus(kvm: &Kvm, fd: &VmFd, count: u8, entry: u64) -> Result<Vec<VcpuFd>, BootError> {
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(step("return the supported CPUID"))?;
    let mut vcpus = Vec::with_capacity(count.into());
    for index in 0..count {
        let vcpu = fd.create_vcpu(index.into()).map_err(step("create a vCPU"))?;
        let error = |source: Box<dyn std::error::Error + Send + Sync>| BootError::Vcpu { index, source };
        let topology = cpuid::Topology { index, count, tsc_khz: vcpu.get_tsc_khz().ok() };
        let description = cpuid::for_vcpu(&supported, topology).map_err(|e| error(e.into()))?;
        vcpu.set_cpuid2(&description).map_err(|e| error(e.into()))?;
        msr::setup(&vcpu).map_err(|e| error(e.into()))?;
        if index == 0 {
            regs::enter_pvh(&vcpu, entry).map_err(|e| error(e.into()))?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kvm_must_have_is_asked_for() {
        assert_eq!(missing(|_| 1), None);
        for (lacks, name) in [
            (KVM_CAP_IOEVENTFD_ANY_LENGTH, "KVM_CAP_IOEVENTFD_ANY_LENGTH"),
            (KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM"),
        ] {
            // KVM says 0, or refuses.
            for answer in [0, -1] {
                let named = missing(|capability| if capability == lacks { answer } else { 1 });
                assert!(named.is_some_and(|text| text.contains(name)), "{named:?}");
            }
        }
    }

    #[test]
    fn performance_counters_are_disabled_where_that_is_possible() {
        let request = without_pmu(KVM_PMU_CAP_DISABLE as i32).unwrap();
        assert_eq!((request.cap, request.args[0]), (KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE.into()));
        assert!(without_pmu(0).is_none() && without_pmu(-1).is_none());
    }
}
