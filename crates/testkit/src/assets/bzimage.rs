//! What is packed into a bzImage.

const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;
/// LZ4 in the format of its first versions, which the kernel uses.
const LZ4: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// The compressed kernel, if that is how it is compressed.
pub fn lz4_payload(image: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    let start = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * SECTOR + number(PAYLOAD_OFFSET)?;
    // The kernel's build adds the unpacked size behind the stream.
    let end = (start + number(PAYLOAD_LENGTH)?).checked_sub(4)?;
    image.get(start..end).filter(|payload| payload.starts_with(&LZ4))
}
