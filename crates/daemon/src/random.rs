//! Random bits of the kernel's.

use guise_api::ApiError;

/// Random hexadecimal digits.
pub fn digits(count: usize) -> Result<String, ApiError> {
    let mut bytes = vec![0; count.div_ceil(2)];
    let mut source = std::fs::File::open("/dev/urandom").map_err(ApiError::internal)?;
    std::io::Read::read_exact(&mut source, &mut bytes).map_err(ApiError::internal)?;
    let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text.truncate(count);
    Ok(text)
}
