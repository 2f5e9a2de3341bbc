use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::*;
use crate::formats::raw::Raw;
use crate::graph::Image;
use crate::storage::MemoryStorage;

const SIZE: usize = 4 << 20;

fn read(bytes: &[u8]) -> Option<PartitionTable> {
    let storage = Arc::new(MemoryStorage::from_bytes("memory", bytes));
    let format = Raw::open(storage).expect("open");
    let image = Image::new(Box::new(format), None, Path::new("memory"), false);
    partitions(&image).expect("memory can be read")
}

fn put_entry(disk: &mut [u8], sector: usize, index: usize, kind: u8, start: u32, sectors: u32) {
    let at = sector * 512 + 446 + index * 16;
    disk[at + 4] = kind;
    disk[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
    disk[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
    disk[sector * 512 + 510..sector * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
}

fn stretches(table: &PartitionTable) -> Vec<(u32, u64, u64)> {
    table.partitions.iter().map(|p| (p.number, p.start / 512, p.length / 512)).collect()
}

#[test]
fn primary_and_logical_partitions_are_found() {
    let mut disk = vec![0; SIZE];
    put_entry(&mut disk, 0, 0, 0x83, 64, 100);
    put_entry(&mut disk, 0, 3, 0x0f, 1000, 3000);
    put_entry(&mut disk, 1000, 0, 0x82, 8, 50);
    put_entry(&mut disk, 1000, 1, 0x05, 500, 100);
    put_entry(&mut disk, 1500, 0, 0x83, 8, 60);
    disk[446] = 0x80;
    let table = read(&disk).expect("a table");
    assert_eq!((table.scheme, table.damage), (Scheme::Mbr, None));
    assert_eq!(stretches(&table), [(1, 64, 100), (4, 1000, 3000), (5, 1008, 50), (6, 1508, 60)]);
    assert!(table.partitions[0].bootable);
    assert_eq!(table.partitions[2].kind, "Linux swap");
}

#[test]
fn a_circle_of_logical_partitions_ends() {
    let mut disk = vec![0; SIZE];
    put_entry(&mut disk, 0, 0, 0x05, 1000, 3000);
    put_entry(&mut disk, 1000, 1, 0x05, 0, 100);
    let table = read(&disk).expect("a table");
    assert_eq!(table.damage, Some("the chain of logical partitions does not end"));
}

#[test]
fn what_is_no_table_is_not_taken_for_one() {
    assert_eq!(read(&vec![0; SIZE]), None);
    assert_eq!(read(&[]), None);
    let mut boot_sector = vec![0x90; SIZE];
    boot_sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert_eq!(read(&boot_sector), None);
    let mut outside = vec![0; SIZE];
    put_entry(&mut outside, 0, 0, 0x83, u32::MAX, u32::MAX);
    assert_eq!(read(&outside), None);
}

/// A table with one partition, in both of its places.
fn gpt(unit: usize) -> Vec<u8> {
    let mut disk = vec![0; SIZE];
    let last = SIZE / unit - 1;
    let mut array = vec![0; 128 * 128];
    // EFI system, as it is on the disk.
    array[..16].copy_from_slice(
        &Uuid::parse_str("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").expect("a GUID").to_bytes_le(),
    );
    array[16] = 1;
    array[32..40].copy_from_slice(&100_u64.to_le_bytes());
    array[40..48].copy_from_slice(&199_u64.to_le_bytes());
    for (at, letter) in "boot".encode_utf16().enumerate() {
        array[56 + at * 2..58 + at * 2].copy_from_slice(&letter.to_le_bytes());
    }
    let array_len = array.len().div_ceil(unit);
    for (own, other, entries) in [(1, last, 2), (last, 1, last - array_len)] {
        let mut header = vec![0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..12].copy_from_slice(&0x1_0000_u32.to_le_bytes());
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        header[24..32].copy_from_slice(&(own as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(other as u64).to_le_bytes());
        header[72..80].copy_from_slice(&(entries as u64).to_le_bytes());
        header[80..84].copy_from_slice(&128_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(&array).to_le_bytes());
        let sum = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        disk[own * unit..own * unit + 92].copy_from_slice(&header);
        disk[entries * unit..entries * unit + array.len()].copy_from_slice(&array);
    }
    put_entry(&mut disk, 0, 0, 0xee, 1, 1000);
    disk
}

#[test]
fn guid_tables_are_read_with_both_sector_sizes() {
    for unit in [512, 4096] {
        let table = read(&gpt(unit)).expect("a table");
        assert_eq!((table.scheme, table.damage), (Scheme::Gpt, None));
        let [partition] = &table.partitions[..] else { panic!("one partition") };
        assert_eq!((partition.start, partition.length), (100 * unit as u64, 100 * unit as u64));
        assert_eq!((partition.kind.as_str(), partition.name.as_str()), ("EFI system", "boot"));
    }
}

#[test]
fn the_second_copy_serves_when_the_first_is_damaged() {
    let mut disk = gpt(512);
    disk[512 + 40] ^= 1;
    let table = read(&disk).expect("a table");
    assert_eq!(table.damage, Some("the table at the disk's start is damaged"));
    assert_eq!(stretches(&table), [(1, 100, 100)]);
    let last = SIZE - 512;
    disk[last + 40] ^= 1;
    let table = read(&disk).expect("the protective table is left");
    assert_eq!(table.scheme, Scheme::Mbr);
}
