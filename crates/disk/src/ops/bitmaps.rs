//! Dirty bitmaps of whole images.

use crate::error::{Error, Result};
use crate::formats::qcow2::Qcow2;
use crate::graph::Image;

fn qcow2(image: &Image) -> Result<&Qcow2> {
    let kind = image.kind().name();
    image.format().as_qcow2().ok_or(Error::NoSuchOperation { format: kind, what: "bitmaps" })
}

/// Takes the bitmaps of one image over into another.
pub fn copy_bitmaps(from: &Image, to: &Image, skip_broken: bool) -> Result<()> {
    let (source, target) = (qcow2(from)?, qcow2(to)?);
    for bitmap in source.bitmaps()? {
        if bitmap.in_use {
            if skip_broken {
                continue;
            }
            return Err(Error::Named {
                what: "bitmap",
                name: bitmap.name,
                problem: "is inconsistent; leave such out with --skip-broken-bitmaps",
            });
        }
        target.add_bitmap(&bitmap.name, bitmap.granularity, false)?;
        target.merge_bitmap(&bitmap.name, source, &bitmap.name)?;
        target.enable_bitmap(&bitmap.name, bitmap.enabled)?;
    }
    Ok(())
}

/// The bytes that an image's bitmaps take with this cluster size.
pub fn measure_bitmaps(image: &Qcow2, cluster: u64) -> Result<u64> {
    use crate::format::Format;
    let bitmaps = image.bitmaps()?;
    let mut bytes = 0;
    let mut directory = 0;
    for bitmap in &bitmaps {
        let bits = image.size().div_ceil(bitmap.granularity);
        let data = bits.div_ceil(8).next_multiple_of(cluster);
        bytes += data + (data / cluster * 8).next_multiple_of(cluster);
        directory += (24 + bitmap.name.len() as u64).next_multiple_of(8);
    }
    Ok(bytes + directory.next_multiple_of(cluster))
}
