//! Models tell what is true, and nothing that the engine lacks.

use crate::{CpuModel, EngineError};
use iced_x86::{Code, CpuidFeature};

use super::cpuid::Context;
use super::msr::Msr;
use super::*;

fn context(model: &Model) -> Context {
    Context { apic_id: 1, apic_enabled: true, cr4: 1 << 18, xcr0: model.xcr0() }
}

fn all() -> Vec<Model> {
    CpuModel::ALL
        .into_iter()
        .filter_map(|kind| match Model::new(kind, 2, 2_500_000) {
            Ok(model) => Some(model),
            Err(error) => {
                println!("not run: {error}");
                None
            }
        })
        .collect()
}

#[test]
fn models_grow() {
    let rich = features::FEATURES.iter().fold(Features::always(), |set, each| {
        if let Source::Host(extension) = each.source { set.with(extension) } else { set }
    });
    let make = |kind| Model::on_host(kind, 1, 1_000_000, &rich).unwrap();
    let models = CpuModel::ALL.map(make);
    for pair in models.windows(2) {
        let both = pair[0].features().and(*pair[1].features());
        assert_eq!(&both, pair[0].features());
    }
    let [baseline, v2, v3, host] = &models;
    assert!(baseline.features().allow(Code::Addpd_xmm_xmmm128));
    assert!(!baseline.features().allow(Code::Cmpxchg16b_m128));
    assert!(v2.features().allow(Code::Cmpxchg16b_m128));
    assert!(!v2.features().allow(Code::VEX_Andn_r32_r32_rm32));
    assert!(v3.features().allow(Code::VEX_Vpaddd_ymm_ymm_ymmm256));
    assert!(!v3.features().allow(Code::EVEX_Vpaddd_zmm_k1z_zmm_zmmm512b32));
    assert!(host.features().allow(Code::EVEX_Vpaddd_zmm_k1z_zmm_zmmm512b32));
    assert_eq!([baseline.xcr0(), v3.xcr0(), host.xcr0()], [3, 7, 0x2e7]);
    assert_eq!(baseline.cr4_known(), 0x7fc);
    assert_eq!(v3.cr4_known(), 0x7fc | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 20);
}

#[test]
fn a_model_that_the_host_cannot_honour_says_what_is_missing() {
    let poor = Features::always().with(CpuidFeature::MMX).with(CpuidFeature::SSE);
    let error = Model::on_host(CpuModel::Baseline, 1, 1, &poor).unwrap_err();
    assert!(matches!(&error, EngineError::Model { missing, .. } if missing == "sse2"), "{error}");
    assert!(Model::on_host(CpuModel::Host, 1, 1, &poor).is_ok());
    assert!(Model::new(CpuModel::Host, 0, 1).is_err());
    assert!(Model::new(CpuModel::Host, 9, 1).is_err());
}

#[test]
fn no_model_tells_of_what_the_engine_lacks() {
    use Register::{Ebx, Ecx, Edx};
    for model in all() {
        let leaf = |number| model.cpuid(number, 0, &context(&model));
        // MONITOR, VMX, SMX; HLE, RTM, MPX; LA57, shadow stacks; IBT; SVM.
        for (leaf, register, bit) in [
            (1, Ecx, 3),
            (1, Ecx, 5),
            (1, Ecx, 6),
            (7, Ebx, 4),
            (7, Ebx, 11),
            (7, Ebx, 14),
            (7, Ecx, 16),
            (7, Ecx, 7),
            (7, Edx, 20),
            (0x8000_0001, Ecx, 2),
        ] {
            assert!(!model.tells(leaf, register, bit), "{:?} {leaf:x} {bit}", model.kind());
        }
        assert_eq!(leaf(0xa).eax, 0);
        assert_eq!(leaf(0).ebx.to_le_bytes(), *b"Genu");
        assert_eq!(leaf(0x4000_0000).ebx.to_le_bytes(), *b"KVMK");
        assert_eq!(leaf(0x1234_5678), leaf(0x20));
        assert_eq!(leaf(1).ebx >> 24, 1);
        assert_eq!(leaf(1).ecx >> 27 & 1, 1);
    }
}

#[test]
fn the_xsave_leaf_agrees_with_the_layout() {
    for model in all().into_iter().filter(|model| model.tells(1, Register::Ecx, 26)) {
        let main = model.cpuid(0xd, 0, &context(&model));
        assert_eq!(u64::from(main.eax), model.xcr0());
        let mut end = 576;
        for number in 2..63 {
            let part = model.cpuid(0xd, number, &context(&model));
            assert_eq!(part.eax != 0, model.xcr0() >> number & 1 != 0, "component {number}");
            end = end.max(part.eax + part.ebx);
        }
        assert_eq!((main.ebx, main.ecx), (end, end));
    }
}

#[test]
fn topology_has_a_core_for_each_vcpu() {
    for vcpus in 1..=MAX_VCPUS {
        let model = Model::new(CpuModel::Host, vcpus, 2_000_000).unwrap();
        let cores = model.cpuid(0xb, 1, &context(&model));
        assert_eq!((cores.ebx, cores.edx), (vcpus, 1));
        assert!(1 << cores.eax >= vcpus);
        assert_eq!(model.cpuid(0xb, 2, &context(&model)).ecx >> 8, 0);
    }
}

#[test]
fn msrs_take_what_they_may_take() {
    let model = Model::new(CpuModel::Host, 1, 2_000_000).unwrap();
    let write = |number, value| model.msr(number).unwrap().write(value);
    assert_eq!(write(0x10a, 0), None);
    assert_eq!(write(0x8b, 0), Some(false));
    assert_eq!(write(0x48, 1), Some(true));
    assert_eq!(write(0x48, 8), None);
    assert_eq!(write(0x49, 1), Some(false));
    assert_eq!(write(0x277, 0x0007_0406_0007_0406), Some(true));
    assert_eq!(write(0x277, 2), None);
    assert_eq!(write(0x2ff, 0xc06), Some(true));
    assert_eq!(write(0x2ff, 0xc02), None);
    assert_eq!(write(0x200, 0x8000_0006), Some(true));
    assert_eq!(write(0x201, 1 << 50), None);
    assert!(!model.msr(0x49).unwrap().can_read());
    assert_eq!(model.msr(0x1234), None);
    assert_eq!(model.msr(0x3a), Some(Msr::Constant(1)));
    for number in model.stateful_msrs() {
        let msr = model.msr(number).unwrap();
        assert_eq!(msr.write(msr.initial()), Some(true), "{number:#x}");
    }
}
