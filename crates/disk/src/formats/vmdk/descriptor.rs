//! The text that describes a VMDK disk: what it is made of, its identity and
//! its parent.

use crate::error::{Blame, Result};

/// A descriptor larger than this is no descriptor.
pub(super) const MAX_LEN: u64 = 1 << 20;
const MAX_EXTENTS: usize = 4096;
const NO_PARENT: u32 = u32::MAX;

/// How an extent is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storing {
    Flat,
    Sparse,
    Zero,
    VmfsSparse,
    SeSparse,
}

/// One line of the list of extents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExtentLine {
    pub writable: bool,
    pub sectors: u64,
    pub storing: Storing,
    pub file: String,
    /// Where a flat extent starts in its file, in sectors.
    pub offset: u64,
}

/// What a descriptor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub cid: u32,
    pub has_parent: bool,
    pub parent: Option<String>,
    pub create_type: String,
    pub extents: Vec<ExtentLine>,
}

impl Descriptor {
    pub(super) fn parse(text: &str, blame: &Blame) -> Result<Self> {
        let mut descriptor = Self {
            cid: 0,
            has_parent: false,
            parent: None,
            create_type: String::new(),
            extents: Vec::new(),
        };
        for line in text.lines().map(|line| line.trim_matches(['\0', ' ', '\t', '\r'])) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(extent) = parse_extent(line) {
                let extent = extent
                    .ok_or_else(|| blame.corrupt(format!("extent line '{line}' makes no sense")))?;
                if descriptor.extents.len() == MAX_EXTENTS {
                    return Err(blame.corrupt("too many extents"));
                }
                descriptor.extents.push(extent);
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.trim().trim_matches('"');
            let hex = || {
                u32::from_str_radix(value, 16)
                    .map_err(|_| blame.corrupt(format!("'{line}' is not a number")))
            };
            match key.trim().to_ascii_lowercase().as_str() {
                "version" if !matches!(value, "1" | "2" | "3" | "4") => {
                    return Err(blame.unsupported(format!("descriptor version {value}")));
                }
                "cid" => descriptor.cid = hex()?,
                "parentcid" => descriptor.has_parent = hex()? != NO_PARENT,
                "createtype" => descriptor.create_type = value.to_owned(),
                "parentfilenamehint" => descriptor.parent = Some(value.to_owned()),
                _ => {}
            }
        }
        if descriptor.create_type.is_empty() || descriptor.extents.is_empty() {
            return Err(blame.corrupt("the descriptor names no type or no extent"));
        }
        Ok(descriptor)
    }

    /// The text for a new image.
    pub(super) fn encode(&self, adapter: &str, version: u32) -> String {
        let mut text = format!(
            "# Disk DescriptorFile\nversion=1\nCID={:08x}\nparentCID={:08x}\ncreateType=\"{}\"\n",
            self.cid,
            if self.has_parent { 0 } else { NO_PARENT },
            self.create_type
        );
        if let Some(parent) = &self.parent {
            text += &format!("parentFileNameHint=\"{parent}\"\n");
        }
        text += "\n# Extent description\n";
        let mut sectors = 0;
        for extent in &self.extents {
            let storing = match extent.storing {
                Storing::Flat => "FLAT",
                Storing::Sparse => "SPARSE",
                Storing::Zero => "ZERO",
                Storing::VmfsSparse => "VMFSSPARSE",
                Storing::SeSparse => "SESPARSE",
            };
            text += &format!("RW {} {storing} \"{}\"", extent.sectors, extent.file);
            if extent.storing == Storing::Flat {
                text += &format!(" {}", extent.offset);
            }
            text.push('\n');
            sectors += extent.sectors;
        }
        let (heads, per_track) = if adapter == "ide" { (16, 63) } else { (255, 63) };
        text += &format!(
            "\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"{version}\"\n\
             ddb.geometry.cylinders = \"{}\"\nddb.geometry.heads = \"{heads}\"\n\
             ddb.geometry.sectors = \"{per_track}\"\nddb.adapterType = \"{adapter}\"\n",
            sectors.div_ceil(heads * per_track)
        );
        text
    }
}

/// The text of a disk whose last extent has another length, and with the geometry that
/// the whole then has. `None`: there is no extent in it.
pub(super) fn with_last_extent(text: &str, sectors: u64) -> Option<String> {
    let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let extents: Vec<(usize, ExtentLine)> = lines
        .iter()
        .enumerate()
        .filter_map(|(number, line)| Some((number, parse_extent(line.trim())??)))
        .collect();
    let ((last, _), before) = extents.split_last()?;
    let (access, rest) = lines[*last].trim_start().split_once(char::is_whitespace)?;
    let rest = rest.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
    lines[*last] = format!("{access} {sectors}{rest}");
    let total = before.iter().fold(sectors, |sum, (_, line)| sum.saturating_add(line.sectors));
    let geometry = |lines: &[String], what: &str| -> Option<(usize, u64)> {
        let key = format!("ddb.geometry.{what}");
        let at = lines.iter().position(|line| line.trim_start().starts_with(&key))?;
        let value = lines[at].split_once('=')?.1.trim().trim_matches('"').parse().ok()?;
        Some((at, value))
    };
    let (heads, per_track) = (geometry(&lines, "heads"), geometry(&lines, "sectors"));
    if let (Some((at, _)), Some((_, heads)), Some((_, per_track))) =
        (geometry(&lines, "cylinders"), heads, per_track)
    {
        let cylinders = total.div_ceil(heads.saturating_mul(per_track).max(1));
        lines[at] = format!("ddb.geometry.cylinders = \"{cylinders}\"");
    }
    Some(lines.join("\n"))
}

/// `None`: not a line of that kind. `Some(None)`: one, but a wrong one.
fn parse_extent(line: &str) -> Option<Option<ExtentLine>> {
    let (access, rest) = line.split_once(char::is_whitespace)?;
    let writable = match access {
        "RW" => true,
        "RDONLY" => false,
        "NOACCESS" => return Some(None),
        _ => return None,
    };
    Some(extent_fields(rest, writable))
}

fn extent_fields(rest: &str, writable: bool) -> Option<ExtentLine> {
    let (sectors, rest) = rest.trim_start().split_once(char::is_whitespace)?;
    let sectors = sectors.parse().ok().filter(|&sectors: &u64| sectors <= i64::MAX as u64 / 512)?;
    let rest = rest.trim_start();
    let (storing, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let storing = match storing {
        "FLAT" | "VMFS" => Storing::Flat,
        "SPARSE" => Storing::Sparse,
        "ZERO" => Storing::Zero,
        "VMFSSPARSE" => Storing::VmfsSparse,
        "SESPARSE" => Storing::SeSparse,
        _ => return None,
    };
    if storing == Storing::Zero {
        return Some(ExtentLine { writable, sectors, storing, file: String::new(), offset: 0 });
    }
    let (file, rest) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
    let offset = match rest.trim() {
        "" => 0,
        number => number.split_whitespace().next()?.parse().ok()?,
    };
    if offset > i64::MAX as u64 / 512 {
        return None;
    }
    Some(ExtentLine { writable, sectors, storing, file: file.to_owned(), offset })
}
