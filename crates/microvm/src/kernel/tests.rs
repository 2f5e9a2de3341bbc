use guise_testkit::assets::Kernel;

use super::*;

#[test]
fn the_agent_is_static_and_small() {
    assert!(AGENT.starts_with(b"\x7fELF"));
    assert!(AGENT.len() <= 2 << 20, "{}", AGENT.len());
    // A program that names no interpreter.
    assert!(!AGENT.windows(11).any(|window| window == b"/lib64/ld-l"));
}

/// One kernel is packed with LZ4 and has plain modules, the other with zstd and xz.
#[test]
fn stock_kernels_are_unpacked_and_their_modules_found() {
    for kernel in [Kernel::Debian12Cloud, Kernel::Debian13Cloud] {
        let cache = tempfile::tempdir().unwrap();
        let (image, modules) = (kernel.image().unwrap(), kernel.modules().unwrap());
        let prepared = PreparedKernel::make(&image, &modules, cache.path()).unwrap();
        assert_eq!(prepared.kernel, cache.path().join("vmlinux"));
        let size = fs::metadata(&prepared.kernel).unwrap().len();
        assert!(size > 20 << 20, "{}: {size}", kernel.name());
        let initrd = fs::read(&prepared.initrd).unwrap();
        for name in ["modules/erofs.ko", "modules/overlay.ko", "vmw_vsock_virtio_transport.ko"] {
            let found = initrd.windows(name.len()).any(|window| window == name.as_bytes());
            assert!(found, "{}: {name}", kernel.name());
        }
        // The second time nothing is done.
        let again = PreparedKernel::make(Path::new("/none"), Path::new("/none"), cache.path());
        assert_eq!(again.unwrap(), prepared);
    }
}

#[test]
fn what_is_no_packed_kernel_is_left_alone_and_what_is_broken_is_refused() {
    assert_eq!(unpack(b"\x7fELF and so on"), Ok(None));
    assert_eq!(unpack(&[]), Ok(None));
    let mut image = vec![0; 4096];
    image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
    image[SETUP_SECTORS] = 1;
    image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&100u32.to_le_bytes());
    assert_eq!(unpack(&image), Ok(None));
    image[1024..1028].copy_from_slice(&LZ4_LEGACY);
    image[1028..1032].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(unpack(&image).unwrap_err().contains("outside"));
    image[1028..1032].copy_from_slice(&16u32.to_le_bytes());
    image[1032..1048].fill(0xff);
    assert!(unpack(&image).is_err());
    image[1024..1028].copy_from_slice(&ZSTD);
    assert!(unpack(&image).is_err());
    image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].fill(0xff);
    assert_eq!(unpack(&image), Ok(None));
}
