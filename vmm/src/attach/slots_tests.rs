//! Disks that come and go. They need KVM, but no guest that runs. The filters of all threads are installed.

use std::path::Path;
use std::thread;

use kvm_ioctls::Kvm;

use super::*;
use crate::bus::BusDevice;
use crate::devices::virtio::hostile::{Guest, START};
use crate::event_loop::EventLoop;
use crate::jail::allocator;
use crate::jail::seccomp::ThreadKind;

/// More than the threads for which the C library makes heaps without asking how many processors there are.
const SLOTS: usize = 12;

/// A VM with slots for disks.
struct Machine {
    slots: Slots,
    registers: Vec<Arc<Mutex<Slot>>>,
    _event_loop: EventLoop,
}

/// None where there is no KVM.
fn machine() -> Option<Machine> {
    let made = Kvm::new().and_then(|kvm| kvm.create_vm()).and_then(|fd| fd.create_irq_chip().map(|()| fd));
    let Ok(fd) = made.inspect_err(|error| eprintln!("nothing is tested without KVM: {error}")) else {
        return None;
    };
    allocator::limit_heaps();
    let event_loop = EventLoop::new().unwrap();
    let registers: Vec<Arc<Mutex<Slot>>> = (0..SLOTS).map(|_| Arc::default()).collect();
    let free = registers.iter().cloned().enumerate().collect();
    let memory = Guest::new(1).queues()[0].memory().clone();
    let slots = Slots::new(Arc::new(fd), memory, event_loop.joiner(), Vec::new(), free).unwrap();
    Some(Machine { slots, registers, _event_loop: event_loop })
}

fn config() -> DiskConfig {
    DiskConfig { serial: "disk".to_owned(), size: 4096, read_only: false }
}

fn image() -> tempfile::NamedTempFile {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4096).unwrap();
    image
}

/// Whether this process has the file open.
fn is_open(path: &Path) -> bool {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|link| link == path)
}

/// Waits until the thread of a disk has ended, with calls that every thread may make.
fn await_end(unplugging: &Unplugging) {
    while unplugging.ended.read().is_err() {
        thread::yield_now();
    }
}

#[test]
fn a_disk_comes_and_goes_whatever_the_driver_does() {
    let Some(Machine { mut slots, registers, .. }) = machine() else { return };
    let image = image().into_temp_path();
    // A driver that never came, one that let go, and one that did not.
    for (round, steps) in [0, START.len(), START.len() - 1].into_iter().cycle().take(18).enumerate() {
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let number = slots.plug_disk(file, &config()).unwrap();
        assert_eq!(number, round % SLOTS, "the slots are used in turn");
        let mut id = [0; 4];
        lock(&registers[number]).read(8, &mut id);
        assert_eq!(id, [2, 0, 0, 0], "it is a disk");
        let slot = registers[number].clone();
        let driver = move || {
            ThreadKind::Vcpu.enter();
            START[..steps]
                .iter()
                .for_each(|(register, value)| lock(&slot).write(*register, &value.to_le_bytes()));
        };
        thread::spawn(driver).join().unwrap();
        let unplugging = slots.unplug_disk(number as u32).unwrap();
        assert!(matches!(slots.unplug_disk(number as u32), Err(DeviceError::NoDisk(_))));
        await_end(&unplugging);
        assert!(!is_open(&image));
        lock(&registers[number]).read(8, &mut id);
        assert_eq!(id, [0; 4], "it is a placeholder");
        slots.release(unplugging);
    }
}

/// On a thread with the filter of the event loop, which does this.
#[test]
fn the_number_of_disks_is_limited() {
    let Some(Machine { mut slots, .. }) = machine() else { return };
    let mut images: Vec<File> = (0..SLOTS + 3).map(|_| image().into_file()).collect();
    let on_event_loop = move || {
        ThreadKind::Main.enter();
        let mut plug = |slots: &mut Slots| slots.plug_disk(images.pop().unwrap(), &config());
        (0..SLOTS).for_each(|number| assert_eq!(plug(&mut slots).unwrap(), number));
        assert!(matches!(plug(&mut slots), Err(DeviceError::NoDiskSlot)));
        let unplugging = slots.unplug_disk(1).unwrap();
        assert!(matches!(plug(&mut slots), Err(DeviceError::NoDiskSlot)), "its thread may still run");
        await_end(&unplugging);
        slots.release(unplugging);
        assert_eq!(plug(&mut slots).unwrap(), 1);
    };
    thread::spawn(on_event_loop).join().unwrap();
}
