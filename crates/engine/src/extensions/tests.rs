//! Sets of extensions say what decoded instructions need.

use super::*;

#[test]
fn this_host_has_the_base_architecture() {
    let host = Features::host();
    assert!(host.allow(Code::Add_rm32_r32));
    assert!(host.allow(Code::Fadd_m32fp));
    assert!(host.allow(Code::Addps_xmm_xmmm128));
    assert!(!host.allow(Code::Vmlaunch));
    assert!(!host.allow(Code::D3NOW_Pavgusb_mm_mmm64));
}

#[test]
fn sets_combine() {
    let set = Features::always().with(AVX).with(AVX2).with(SSE);
    assert!(set.allow(Code::VEX_Vaddps_xmm_xmm_xmmm128));
    assert!(!set.without_avx().allow(Code::VEX_Vaddps_xmm_xmm_xmmm128));
    assert!(!set.and(Features::always()).has(SSE));
    assert!(set.without_avx().has(SSE));
}
