//! What a mask leaves out is not touched; what it wants is.

use iced_x86::{Decoder, DecoderOptions};

use super::*;
use crate::exception::Exception;
use crate::host::stub::Stubs;
use crate::host::traps;
use guise_engine::extensions::Features;

struct Bench {
    state: Box<CpuState>,
    /// Everything else faults.
    memory: Vec<u8>,
    stubs: Stubs,
}

impl Access for Bench {
    type Fault = Exception;

    fn state(&mut self) -> &mut CpuState {
        &mut self.state
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Exception> {
        let start = address as usize;
        let source = self.memory.get(start..start.wrapping_add(bytes.len()));
        bytes.copy_from_slice(source.ok_or(Exception::page_fault(address, 0))?);
        Ok(())
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Exception> {
        let start = address as usize;
        let target = self.memory.get_mut(start..start.wrapping_add(bytes.len()));
        target.ok_or(Exception::page_fault(address, 2))?.copy_from_slice(bytes);
        Ok(())
    }

    fn raise(&mut self, exception: Exception) -> Exception {
        exception
    }

    fn privilege(&mut self) -> u8 {
        3
    }
}

impl Bench {
    fn new() -> Bench {
        traps::prepare_thread().unwrap();
        // SAFETY: zeros are values for all fields; the one pointer is not followed.
        let mut state: Box<CpuState> = unsafe { Box::new_zeroed().assume_init() };
        crate::fpu::reset(&mut state);
        let memory = (0..256).map(|i| i as u8).collect();
        Bench { state, memory, stubs: Stubs::new(Features::host(), 65536).unwrap() }
    }

    fn run(&mut self, bytes: &[u8], address: u64) -> Result<(), Exception> {
        let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        let stub = needs_stub(&instruction).then(|| self.stubs.compile(&instruction).unwrap());
        execute(self, &instruction, Effective { address, mask: !0 }, stub.as_ref())
    }

    fn set_signs(&mut self, register: usize, element: usize, bits: u32) {
        for i in 0..32 / element {
            let sign = if bits >> i & 1 != 0 { 0x80 } else { 0 };
            self.state.vector[register].0[i * element + element - 1] = sign;
        }
    }
}

#[test]
fn vmaskmov_faults_on_wanted_elements_only() {
    let mut bench = Bench::new();
    // vmaskmovps ymm0, ymm1, [rax]: two elements are inside, at the end of memory
    bench.set_signs(1, 4, 0b11);
    bench.run(&[0xc4, 0xe2, 0x75, 0x2c, 0x00], 248).unwrap();
    let loaded = bench.state.vector[0].0;
    assert_eq!(loaded[..9], [248, 249, 250, 251, 252, 253, 254, 255, 0]);
    bench.set_signs(1, 4, 0b111);
    let fault = bench.run(&[0xc4, 0xe2, 0x75, 0x2c, 0x00], 248).unwrap_err();
    assert_eq!(fault, Exception::page_fault(256, 0));
    assert_eq!(bench.state.vector[0].0, loaded);
    // vpmaskmovq [rax], xmm1, xmm0
    bench.set_signs(1, 8, 0b10);
    bench.run(&[0xc4, 0xe2, 0xf1, 0x8e, 0x00], 16).unwrap();
    assert_eq!(bench.memory[16..26], [16, 17, 18, 19, 20, 21, 22, 23, 0, 0]);
}

#[test]
fn maskmovdqu_writes_bytes() {
    let mut bench = Bench::new();
    bench.state.vector[0].0[..16].fill(0xee);
    bench.state.vector[1].0[1] = 0x80;
    // maskmovdqu xmm0, xmm1
    bench.run(&[0x66, 0x0f, 0xf7, 0xc1], 32).unwrap();
    assert_eq!(bench.memory[32..35], [32, 0xee, 34]);
    // maskmovq mm0, mm1
    bench.state.x87.0[48] = 0xff;
    bench.run(&[0x0f, 0xf7, 0xc1], 32).unwrap();
    assert_eq!(bench.memory[32..35], [0, 0xee, 34]);
    assert_eq!(bench.state.x87.0[4], 0xff);
}

#[test]
fn gathers_stop_where_they_fault_and_can_go_on() {
    let mut bench = Bench::new();
    // vpgatherdd xmm0, [rax + xmm2*4], xmm1
    let code = [0xc4, 0xe2, 0x71, 0x90, 0x04, 0x90];
    for (i, index) in [1i32, -1, 1000, 3].into_iter().enumerate() {
        bench.state.vector[2].0[i * 4..i * 4 + 4].copy_from_slice(&index.to_le_bytes());
    }
    bench.set_signs(1, 4, 0b1111);
    bench.state.vector[0].0[40] = 7;
    let fault = bench.run(&code, 16).unwrap_err();
    assert_eq!(fault, Exception::page_fault(16 + 4000, 0));
    assert_eq!(bench.state.vector[0].0[..8], [20, 21, 22, 23, 12, 13, 14, 15]);
    assert_eq!(bench.state.vector[1].0[3], 0);
    assert_eq!(bench.state.vector[1].0[11], 0x80);
    bench.state.vector[2].0[8..12].fill(0);
    bench.run(&code, 16).unwrap();
    assert_eq!(bench.state.vector[0].0[8..16], [16, 17, 18, 19, 28, 29, 30, 31]);
    assert_eq!(bench.state.vector[0].0[40], 0);
    assert_eq!(bench.state.vector[1].0, [0; 64]);
}

#[test]
fn masks_of_avx512_suppress_faults() {
    if !Features::host().has(iced_x86::CpuidFeature::AVX512VL) {
        println!("not run: this host has no AVX-512");
        return;
    }
    let mut bench = Bench::new();
    // vmovdqu32 zmm0{k1}{z}, [rax]
    bench.state.opmask[1] = 0b11;
    bench.run(&[0x62, 0xf1, 0x7e, 0xc9, 0x6f, 0x00], 248).unwrap();
    assert_eq!(bench.state.vector[0].0[..9], [248, 249, 250, 251, 252, 253, 254, 255, 0]);
    // vmovdqu32 [rax]{k1}, zmm0
    bench.run(&[0x62, 0xf1, 0x7e, 0x49, 0x7f, 0x00], 0).unwrap();
    assert_eq!(bench.memory[..10], [248, 249, 250, 251, 252, 253, 254, 255, 8, 9]);
    // vpaddd zmm0{k1}, zmm0, [rax]{1to16}: not read where the mask is empty
    bench.state.opmask[1] = 0;
    bench.run(&[0x62, 0xf1, 0x7d, 0x59, 0xfe, 0x00], 5000).unwrap();
    bench.state.opmask[1] = 1 << 15;
    assert!(bench.run(&[0x62, 0xf1, 0x7d, 0x59, 0xfe, 0x00], 5000).is_err());
    bench.run(&[0x62, 0xf1, 0x7d, 0x59, 0xfe, 0x00], 16).unwrap();
    assert_eq!(bench.state.vector[0].0[60..], [16, 17, 18, 19]);
    // vpscatterdd [rax + zmm2*4]{k1}, zmm0
    bench.state.opmask[1] = 0b10;
    bench.state.vector[2].0[4] = 2;
    bench.run(&[0x62, 0xf2, 0x7d, 0x49, 0xa0, 0x04, 0x90], 100).unwrap();
    assert_eq!(bench.memory[108..112], [252, 253, 254, 255]);
    assert_eq!(bench.state.opmask[1], 0);
    // vpcompressd [rax]{k1}, zmm0
    bench.state.opmask[1] = 1 << 15 | 1;
    bench.run(&[0x62, 0xf2, 0x7d, 0x49, 0x8b, 0x00], 248).unwrap();
    assert_eq!(bench.memory[248..], [248, 249, 250, 251, 16, 17, 18, 19]);
    // vpexpandd zmm1{k1}{z}, [rax]
    bench.run(&[0x62, 0xf2, 0x7d, 0xc9, 0x89, 0x08], 248).unwrap();
    assert_eq!(bench.state.vector[1].0[60..], [16, 17, 18, 19]);
}
