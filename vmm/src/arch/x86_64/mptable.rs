//! The MP table, which describes processors and interrupt lines without ACPI.
//!
//! Intel's MultiProcessor Specification 1.4, sections 4.1 to 4.3.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout::{IOAPIC_BASE, IRQ_MAX, LOCAL_APIC_BASE, MP_TABLE, MP_TABLE_SIZE};
use crate::memory::Memory;

const SPECIFICATION_1_4: u8 = 4;
const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;
const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
const IOAPIC_ENABLED: u8 = 1;
const APIC_VERSION: u8 = 0x14;
const INTERRUPT_VECTORED: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTERNAL: u8 = 3;
const ALL_LOCAL_APICS: u8 = 0xff;
const ISA_BUS: u8 = 0;
/// CPUID signature and features of an entry; kernels read them from CPUID itself.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201;

const FLOATING_POINTER_LENGTH: usize = 16;
const HEADER_LENGTH: usize = 44;

const _: () = {
    // 64 processors, the bus, the IOAPIC, all interrupt lines and two local ones.
    let longest = FLOATING_POINTER_LENGTH + HEADER_LENGTH + 64 * 20 + 8 + 8 + (IRQ_MAX as usize + 1) * 8 + 16;
    assert!(longest as u64 <= MP_TABLE_SIZE);
};

/// Writes the table for `count` processors whose APIC identifiers are their indices.
///
/// # Errors
/// [`GuestMemoryError`] if guest memory is smaller than the table's address.
pub fn write(memory: &Memory, count: u8) -> Result<(), GuestMemoryError> {
    memory.write_slice(&table(count), GuestAddress(MP_TABLE))
}

fn table(count: u8) -> Vec<u8> {
    let ioapic_id = count;
    let (entries, number) = entries(count, ioapic_id);

    let mut header = Vec::with_capacity(HEADER_LENGTH);
    header.extend(b"PCMP");
    header.extend(((HEADER_LENGTH + entries.len()) as u16).to_le_bytes());
    header.extend([SPECIFICATION_1_4, 0]);
    header.extend(b"POUCH-VMmicrovm     ");
    header.extend([0; 6]); // no OEM table
    header.extend(number.to_le_bytes());
    header.extend(LOCAL_APIC_BASE.to_le_bytes());
    header.extend([0; 4]); // no extended table
    debug_assert_eq!(header.len(), HEADER_LENGTH);
    let mut table = [header, entries].concat();
    table[7] = checksum(&table);

    let mut pointer = Vec::with_capacity(FLOATING_POINTER_LENGTH);
    pointer.extend(b"_MP_");
    pointer.extend((MP_TABLE as u32 + FLOATING_POINTER_LENGTH as u32).to_le_bytes());
    pointer.extend([1, SPECIFICATION_1_4, 0, 0, 0, 0, 0, 0]); // length in paragraphs, version, features
    pointer[10] = checksum(&pointer);

    [pointer, table].concat()
}

/// The entries behind the header, and how many they are.
fn entries(count: u8, ioapic_id: u8) -> (Vec<u8>, u16) {
    let mut bytes = Vec::new();
    let mut number = 0;
    let mut push = |entry: &[u8]| {
        bytes.extend(entry);
        number += 1;
    };
    for id in 0..count {
        let flags = if id == 0 { CPU_ENABLED | CPU_BOOT } else { CPU_ENABLED };
        let mut entry = vec![ENTRY_PROCESSOR, id, APIC_VERSION, flags];
        entry.extend(CPU_SIGNATURE.to_le_bytes());
        entry.extend(CPU_FEATURES.to_le_bytes());
        entry.extend([0; 8]);
        push(&entry);
    }
    push(&[[ENTRY_BUS, ISA_BUS].as_slice(), b"ISA   "].concat());
    let mut ioapic = vec![ENTRY_IOAPIC, ioapic_id, APIC_VERSION, IOAPIC_ENABLED];
    ioapic.extend(IOAPIC_BASE.to_le_bytes());
    push(&ioapic);
    for line in 0..=IRQ_MAX as u8 {
        push(&[ENTRY_IO_INTERRUPT, INTERRUPT_VECTORED, 0, 0, ISA_BUS, line, ioapic_id, line]);
    }
    push(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTERNAL, 0, 0, ISA_BUS, 0, 0, 0]);
    push(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);
    (bytes, number)
}

/// The byte that makes all bytes add up to 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_checksums_are_right_for_every_count() {
        for count in [1, 2, 64] {
            let bytes = table(count);
            let (pointer, table) = bytes.split_at(FLOATING_POINTER_LENGTH);
            assert_eq!(pointer.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);
            assert_eq!(table.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);
            let length = u16::from_le_bytes([table[4], table[5]]);
            assert_eq!(usize::from(length), table.len());
        }
    }

    #[test]
    fn the_first_processor_boots_and_every_one_is_enabled() {
        let (entries, number) = entries(3, 3);
        let flags: Vec<u8> = entries.chunks(20).take(3).map(|entry| entry[3]).collect();
        assert_eq!(flags, [3, 1, 1]);
        assert_eq!(number, 3 + 1 + 1 + 24 + 2);
    }
}
