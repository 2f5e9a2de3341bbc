//! Every form that the decoder knows has somebody who executes it.

use std::collections::BTreeMap;

use super::*;

#[test]
fn every_form_has_a_class_and_the_list_is_told() {
    let host = Features::host();
    let mut counts: BTreeMap<String, (usize, Vec<String>)> = BTreeMap::new();
    for code in Code::values() {
        let class = of_code(code, &host);
        let entry = counts.entry(format!("{class:?}")).or_default();
        entry.0 += 1;
        entry.1.push(format!("{code:?}"));
    }
    for (class, (count, codes)) in &counts {
        println!("{class}: {count} forms");
        if class != "Stub" {
            println!("    {}", codes.join(" "));
        }
    }
    assert!(counts["Stub"].0 > 1000);
    assert_eq!(counts.values().map(|(count, _)| count).sum::<usize>(), Code::values().len());
}

#[test]
fn forms_are_where_they_belong() {
    let all = Features::host();
    for (code, class) in [
        (Code::Add_rm32_r32, Class::Stub),
        (Code::Mul_rm64, Class::Stub),
        (Code::Cmpxchg8b_m64, Class::Stub),
        (Code::Fadd_m32fp, Class::Stub),
        (Code::Wait, Class::Stub),
        (Code::Xlat_m8, Class::Stub),
        (Code::Lahf, Class::Stub),
        (Code::Lea_r32_m, Class::Core),
        (Code::Push_r64, Class::Core),
        (Code::Movsb_m8_m8, Class::Core),
        (Code::Jmp_rel8_64, Class::Core),
        (Code::Mov_r64_cr, Class::Core),
        (Code::Mov_Sreg_rm16, Class::Core),
        (Code::In_AL_DX, Class::Core),
        (Code::Fxsave_m512byte, Class::Core),
        (Code::Fnstenv_m28byte, Class::Core),
        (Code::Xsave_mem, Class::Core),
        (Code::Hlt, Class::Core),
        (Code::Syscall, Class::Core),
        (Code::Ud2, Class::Core),
        (Code::Int3, Class::Core),
        (Code::Iretq, Class::Core),
        (Code::Daa, Class::Decimal),
        (Code::Endbr64, Class::Hint),
        (Code::Nop_rm32, Class::Hint),
        (Code::Maskmovdqu_rDI_xmm_xmm, Class::Masked),
        (Code::Vmlaunch, Class::Invalid),
        (Code::INVALID, Class::Invalid),
    ] {
        assert_eq!(of_code(code, &all), class, "{code:?}");
    }
}

#[test]
fn units_and_mxcsr_are_read_off_the_form() {
    for (code, unit, mxcsr) in [
        (Code::Add_rm32_r32, Unit::None, false),
        (Code::Fadd_m32fp, Unit::X87, false),
        (Code::Fxch_st0_sti, Unit::X87, false),
        (Code::Fisttp_m16int, Unit::X87, false),
        (Code::Paddb_mm_mmm64, Unit::Mmx, false),
        (Code::Paddb_xmm_xmmm128, Unit::Sse, false),
        (Code::Addps_xmm_xmmm128, Unit::Sse, true),
        (Code::Cvtpi2ps_xmm_mmm64, Unit::SseMmx, true),
        (Code::Movaps_xmm_xmmm128, Unit::Sse, false),
        (Code::VEX_Vaddps_xmm_xmm_xmmm128, Unit::Avx, true),
        (Code::VEX_Vpaddd_ymm_ymm_ymmm256, Unit::Avx, false),
        (Code::VEX_Vzeroupper, Unit::Avx, false),
        (Code::VEX_Andn_r32_r32_rm32, Unit::Vex, false),
        (Code::VEX_Kmovw_kr_km16, Unit::Avx512, false),
        (Code::EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er, Unit::Avx512, true),
        (Code::Movnti_m32_r32, Unit::None, false),
    ] {
        assert_eq!(unit_of(code), unit, "{code:?}");
        assert_eq!(uses_mxcsr(code), mxcsr, "{code:?}");
    }
}

#[test]
fn a_prefix_that_a_processor_does_not_know_is_ignored() {
    let old = Features::always();
    assert_eq!(plain(Code::Tzcnt_r32_rm32, &old), Code::Bsf_r32_rm32);
    assert_eq!(of_code(Code::Tzcnt_r32_rm32, &old), Class::Stub);
    let new = old.with(CpuidFeature::BMI1);
    assert_eq!(plain(Code::Tzcnt_r32_rm32, &new), Code::Tzcnt_r32_rm32);
}
