//! Whatever a guest executes, the engine survives it: random bytes, and random
//! sequences of what processors have instructions for, from every mode, end in guest
//! exceptions or an orderly exit.
//!
//! `GUISE_RANDOM_SECONDS` is how long (8 where not given; `make soak` takes a minute and
//! more) and `GUISE_RANDOM_SEED` the seed, which is printed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guise_engine::memory::vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
use guise_engine::state::{RunState, SegmentState};
use guise_engine::{
    CpuModel, Engine, Exit, GuestRegion, MemorySlot, Platform, Vcpu, VcpuState, Vm, VmConfig,
};
use guise_engine_soft::{SoftEngine, Tier};

const MEMORY: usize = 1 << 20;
const CODE: u64 = 0x8000;
const CODE_SIZE: usize = 0x4000;
const TABLES: u64 = 0x1000;

struct Random(u64);

impl Random {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A board of noise.
struct Noise(AtomicU64);

impl Noise {
    fn fill(&self, data: &mut [u8]) {
        let value = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = (value >> (i % 8 * 8)) as u8;
        }
    }
}

impl Platform for Noise {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        self.fill(data);
    }
    fn port_write(&self, _: u16, _: &[u8]) {}
    fn memory_read(&self, _: u64, data: &mut [u8]) {
        self.fill(data);
    }
    fn memory_write(&self, _: u64, _: &[u8]) {}
    fn acknowledge_interrupt(&self) -> Option<u8> {
        None
    }
    fn end_of_interrupt(&self, _: u8) {}
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Real,
    Protected16,
    Protected32,
    Paged32,
    Virtual8086,
    Compatibility,
    Long,
    LongUser,
}

const MODES: [Mode; 8] = [
    Mode::Real,
    Mode::Protected16,
    Mode::Protected32,
    Mode::Paged32,
    Mode::Virtual8086,
    Mode::Compatibility,
    Mode::Long,
    Mode::LongUser,
];

/// Beginnings of instructions that reach far into the engine.
const OPENINGS: &[&[u8]] = &[
    &[0x0f, 0x20],
    &[0x0f, 0x22],
    &[0x0f, 0x21],
    &[0x0f, 0x23],
    &[0x0f, 0x01],
    &[0x0f, 0x00],
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x0f, 0xa2],
    &[0x0f, 0x05],
    &[0x0f, 0x07],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0x0f, 0xae],
    &[0x0f, 0xc7],
    &[0x48, 0x0f, 0xae],
    &[0x48, 0x0f, 0xc7],
    &[0x66, 0x0f, 0x38],
    &[0x66, 0x0f, 0x3a],
    &[0xc4],
    &[0xc5],
    &[0x62],
    &[0xd9],
    &[0xdb],
    &[0xdd],
    &[0xdf],
    &[0xcf],
    &[0x48, 0xcf],
    &[0xca],
    &[0xcb],
    &[0xcd],
    &[0xff],
    &[0xf3, 0xa4],
    &[0xf2, 0xa6],
    &[0xf3, 0x6c],
    &[0xf3, 0x6e],
    &[0x67, 0xf3, 0xab],
    &[0x8e],
    &[0x8c],
    &[0x0f, 0xb2],
    &[0xc8],
    &[0x9d],
    &[0x9c],
    &[0xf0, 0x0f, 0xb1],
    &[0xf0, 0x0f, 0xc7],
    &[0x0f, 0xba],
    &[0x0f, 0xa3],
    &[0xf7],
    &[0xf6],
];

fn write_code(region: &GuestRegion, random: &mut Random) {
    let mut code = Vec::with_capacity(CODE_SIZE + 16);
    let plain = random.below(2) == 0;
    while code.len() < CODE_SIZE {
        if plain || random.below(3) == 0 {
            code.push(random.next() as u8);
        } else {
            code.extend(OPENINGS[random.below(OPENINGS.len() as u64) as usize]);
            let tail = random.below(6) as usize;
            code.extend(&random.next().to_le_bytes()[..tail]);
        }
    }
    region.write_slice(&code, MemoryRegionAddress(CODE)).unwrap();
}

/// Tables that let the guest live for a while: all memory mapped at 0 in 2 MiB (or
/// 4 MiB) pages, and descriptors of every kind.
fn write_tables(region: &GuestRegion, mode: Mode, random: &mut Random) {
    let put = |address: u64, value: u64| {
        region.write_obj(value, MemoryRegionAddress(address)).unwrap();
    };
    if matches!(mode, Mode::Paged32) {
        for entry in 0..1024u64 {
            let value = if entry < 2 { entry << 22 | 0xe7 } else { random.next() & 0xffff_ffff };
            region.write_obj(value as u32, MemoryRegionAddress(TABLES + entry * 4)).unwrap();
        }
    } else {
        put(TABLES, (TABLES + 0x1000) | 7);
        put(TABLES + 0x1000, (TABLES + 0x2000) | 7);
        for entry in 0..512 {
            let value = if entry < 4 { entry << 21 | 0xe7 } else { random.next() };
            put(TABLES + 0x2000 + entry * 8, value);
        }
        for entry in 1..512 {
            put(TABLES + entry * 8, random.next() & !0x80);
            put(TABLES + 0x1000 + entry * 8, random.next());
        }
    }
    // The GDT at 0x5000, the IDT at 0x6000.
    for entry in 0..512u64 {
        let descriptor = random.next() | 0x8000_0000_0000;
        put(0x5000 + entry * 8, descriptor);
        // Gates of every type, into the code.
        let target = CODE + random.below(CODE_SIZE as u64);
        let gate = target & 0xffff
            | (random.below(64) * 8) << 16
            | (0x80 | random.below(16) | random.below(4) << 5) << 40;
        put(0x6000 + entry * 8, gate);
    }
}

fn flat(kind: u32, dpl: u32, extra: u32) -> SegmentState {
    SegmentState {
        selector: 8 + dpl as u16,
        base: 0,
        limit: u32::MAX,
        access: kind | 0x10 | dpl << 5 | 0x80 | 0x8000 | extra,
    }
}

fn set_mode(state: &mut VcpuState, mode: Mode, random: &mut Random) {
    let system = &mut state.system;
    let (code, data, dpl) = match mode {
        Mode::Real | Mode::Virtual8086 | Mode::Protected16 => (0, 0, 0),
        Mode::Protected32 | Mode::Paged32 | Mode::Compatibility => (0x4000, 0x4000, 0),
        Mode::Long => (0x2000, 0x4000, 0),
        Mode::LongUser => (0x2000, 0x4000, 3),
    };
    let v86 = matches!(mode, Mode::Virtual8086);
    system.cs = flat(0xb, dpl, code);
    for segment in [&mut system.ss, &mut system.ds, &mut system.es, &mut system.fs, &mut system.gs]
    {
        *segment = flat(3, dpl, data);
    }
    if v86 || matches!(mode, Mode::Real) {
        let access = if v86 { 0xf3 } else { 0x93 };
        for segment in [
            &mut system.cs,
            &mut system.ss,
            &mut system.ds,
            &mut system.es,
            &mut system.fs,
            &mut system.gs,
        ] {
            *segment = SegmentState { selector: 0, base: 0, limit: 0xffff, access };
        }
    }
    system.gdtr.base = 0x5000;
    system.gdtr.limit = 0xfff;
    system.idtr.base = 0x6000;
    system.idtr.limit = 0xfff;
    if matches!(mode, Mode::Real) {
        system.idtr.base = 0;
        system.idtr.limit = 0x3ff;
    }
    system.tr = SegmentState { selector: 0x40, base: 0x7000, limit: 0xfff, access: 0x8b };
    system.ldtr = SegmentState { selector: 0x48, base: 0x5800, limit: 0x7ff, access: 0x82 };
    system.cr3 = TABLES;
    let (paging, long) = match mode {
        Mode::Real => (0, false),
        Mode::Protected16 | Mode::Protected32 | Mode::Virtual8086 => (1, false),
        Mode::Paged32 => (0x8000_0001, false),
        Mode::Compatibility | Mode::Long | Mode::LongUser => (0x8000_0001, true),
    };
    system.cr0 = paging | 0x30 | random.next() & 0x1_0004_0000 & 0x4_0000;
    system.cr4 = 0x4_0610 | if long { 0x20 } else { 0 } | random.next() & 0x1_0084;
    system.efer = if long { 0xd01 } else { 0x801 };
    system.xcr0 = 7;
    state.registers.rflags = 2 | if v86 { 1 << 17 } else { 0 } | random.next() & 0x3cd5;
    state.registers.rip = CODE + random.below(64);
    for gpr in &mut state.registers.gpr {
        *gpr = match random.below(4) {
            0 => random.next(),
            1 => random.below(0x200),
            _ => random.below(MEMORY as u64),
        };
    }
    state.registers.gpr[4] = 0x10000 + random.below(0x8000) * 8;
    state.run = RunState::Running;
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

#[test]
fn random_guests_do_no_harm() {
    let seed = number("GUISE_RANDOM_SEED", u64::from(std::process::id()) * 0x9e37_79b9);
    let end = Instant::now() + Duration::from_secs(number("GUISE_RANDOM_SECONDS", 8));
    println!("seed {seed}");
    let mut random = Random(seed);
    let noise = Noise(AtomicU64::new(seed));
    let (mut guests, mut shutdowns) = (0, 0);
    while Instant::now() < end {
        for mode in MODES {
            guests += 1;
            let even = (guests / MODES.len()).is_multiple_of(2);
            let tier = if even { Tier::Interpreter } else { Tier::Translator };
            shutdowns += u64::from(one_guest(tier, mode, &mut random, &noise));
        }
    }
    println!("{guests} guests, {shutdowns} of which shut down");
    assert!(guests >= MODES.len());
}

/// Runs a machine of one kind for a few moments; whether it shut down by itself.
fn one_guest(tier: Tier, mode: Mode, random: &mut Random, noise: &Noise) -> bool {
    let config = VmConfig { vcpus: 1, model: CpuModel::Host, tsc_khz: None };
    let vm: Arc<dyn Vm> = SoftEngine::new(tier).create_vm(&config).unwrap();
    let region = Arc::new(GuestRegion::from_range(GuestAddress(0), MEMORY, None).unwrap());
    let size = MEMORY as u64;
    let slot =
        MemorySlot { guest_address: 0, region: region.clone(), offset: 0, size, read_only: false };
    vm.map_memory(0, slot).unwrap();
    let mut vcpu: Box<dyn Vcpu> = vm.create_vcpu(0).unwrap();
    let mut state = vcpu.state().unwrap();
    let handle = vcpu.handle();
    let over = Arc::new(AtomicBool::new(false));
    let mut shut_down = false;
    // Time slices come from another thread: a guest can neither be counted nor stopped
    // from within.
    let kicker = std::thread::spawn({
        let over = over.clone();
        move || {
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(3));
                handle.kick();
            }
        }
    });
    for _ in 0..12 {
        write_tables(&region, mode, random);
        write_code(&region, random);
        set_mode(&mut state, mode, random);
        // State that cannot be is refused, and then there is nothing to run.
        if vcpu.set_state(&state).is_err() {
            continue;
        }
        match vcpu.run(noise) {
            Ok(Exit::Shutdown) => shut_down = true,
            Ok(Exit::Interrupted) => {}
            Ok(other) => panic!("{mode:?}: {other:?}"),
            Err(error) => println!("{mode:?}: {error}"),
        }
        let after = vcpu.state().unwrap();
        vcpu.set_state(&after).expect("what was saved can be loaded");
    }
    over.store(true, Ordering::Relaxed);
    kicker.join().unwrap();
    shut_down
}
