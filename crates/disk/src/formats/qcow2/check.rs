//! Verification: counts every reference that is reachable from the header and
//! compares with the counts stored; repair makes the stored ones agree.
//!
//! A count that is too high leaks space. A count that is too low, a place
//! outside of the file or one used twice can cost data. The flag of sole
//! ownership is judged by the references found: set with several of them it is
//! dangerous, missing with one it only costs a copy.

use std::collections::{HashMap, HashSet};

use super::Qcow2;
use super::bitmap;
use super::entry::{COPIED, OFFSET_MASK, Shape};
use super::header::{INCOMPAT_CORRUPT, INCOMPAT_DIRTY, Region, read_table as read_words};
use super::meta::Meta;
use super::refcounts::clusters_of;
use crate::bytes::be64;
use crate::error::Result;
use crate::format::{CheckReport, Format, Repair};
use crate::storage::read_vec;

const PAGE: u64 = 4096;

/// References found, by cluster; pages exist where there are any.
#[derive(Default)]
struct Found {
    pages: HashMap<u64, Vec<u32>>,
    end: u64,
}

impl Found {
    fn add(&mut self, cluster: u64) {
        let page = self.pages.entry(cluster / PAGE).or_insert_with(|| vec![0; PAGE as usize]);
        let count = &mut page[(cluster % PAGE) as usize];
        *count = count.saturating_add(1);
        self.end = self.end.max(cluster + 1);
    }

    fn get(&self, cluster: u64) -> u64 {
        self.pages
            .get(&(cluster / PAGE))
            .map_or(0, |page| u64::from(page[(cluster % PAGE) as usize]))
    }

    fn has_any(&self, from: u64, to: u64) -> bool {
        (from / PAGE..=(to - 1) / PAGE).any(|page| self.pages.contains_key(&page))
    }
}

/// One run of the check.
struct Walk<'a> {
    image: &'a Qcow2,
    shape: Shape,
    /// References must end before this.
    limit: u64,
    found: Found,
    report: CheckReport,
    /// Flags that say "mine alone": table or L1, index, cluster, flag.
    owned: Vec<Claim>,
}

struct Claim {
    what: &'static str,
    guest: u64,
    cluster: u64,
    copied: bool,
}

impl Walk<'_> {
    fn refer(&mut self, offset: u64, len: u64, what: &str) -> bool {
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > self.limit) {
            self.report.corrupt(format!("{what} at {offset:#x} lies outside the file"));
            return false;
        }
        for cluster in clusters_of(offset, len, self.shape.cluster_bits) {
            self.found.add(cluster);
        }
        true
    }

    fn l1(&mut self, region: Region, words: &[u64], active: bool) -> Result<()> {
        if region.len > 0 {
            self.refer(region.offset, region.len, "an L1 table");
        }
        let mut seen = HashSet::new();
        let mut last_host = None;
        for (index, &word) in words.iter().enumerate() {
            let table = word & OFFSET_MASK;
            if table == 0 {
                continue;
            }
            let guest = (index as u64 * self.shape.entries()) << self.shape.cluster_bits;
            if table & (self.shape.cluster() - 1) != 0 {
                self.report.corrupt(format!("L2 table for {guest:#x} at unaligned {table:#x}"));
                continue;
            }
            if !seen.insert(table) {
                self.report.corrupt(format!("L2 table at {table:#x} is used twice"));
                continue;
            }
            if !self.refer(table, self.shape.cluster(), "an L2 table") {
                continue;
            }
            if active {
                self.owned.push(Claim {
                    what: "L2 table",
                    guest,
                    cluster: table >> self.shape.cluster_bits,
                    copied: word & COPIED != 0,
                });
            }
            self.l2(table, guest, active, &mut last_host)?;
        }
        Ok(())
    }

    fn l2(
        &mut self,
        table: u64,
        start: u64,
        active: bool,
        last_host: &mut Option<u64>,
    ) -> Result<()> {
        let cluster = self.shape.cluster();
        let bytes = read_vec(self.image.file(), table, cluster as usize)?;
        for (index, raw) in bytes.chunks_exact(self.shape.entry_len()).enumerate() {
            let guest = start + (index as u64) * cluster;
            let bits = if self.shape.extended { be64(raw, 8) } else { 0 };
            let entry = match self.shape.decode(be64(raw, 0), bits, guest, &self.image.blame) {
                Ok(entry) => entry,
                Err(error) => {
                    self.report.corrupt(error.to_string());
                    continue;
                }
            };
            if let Some(packed) = entry.packed {
                // The stated length ends with a sector, the file need not.
                self.refer(packed.offset, packed.len, "a compressed cluster");
                if active {
                    self.report.allocated_clusters += 1;
                    self.report.compressed_clusters += 1;
                    self.report.fragmented_clusters += 1;
                }
            } else if entry.has_host() {
                if active {
                    self.report.allocated_clusters += 1;
                    if last_host.is_some_and(|host| host != entry.host) {
                        self.report.fragmented_clusters += 1;
                    }
                    *last_host = Some(entry.host + cluster);
                }
                if self.image.data != 0 {
                    continue;
                }
                if self.refer(entry.host, cluster, "a data cluster") && active {
                    self.owned.push(Claim {
                        what: "data cluster",
                        guest,
                        cluster: entry.host >> self.shape.cluster_bits,
                        copied: entry.copied,
                    });
                }
            }
        }
        Ok(())
    }
}

impl Qcow2 {
    pub(super) fn check_image(&self, repair: Repair) -> Result<CheckReport> {
        if repair != Repair::Nothing {
            self.check_writable()?;
        }
        if self.writable && repair != Repair::All {
            self.settle()?;
        }
        let mut meta = self.meta.lock();
        let cluster = self.shape.cluster();
        let file_len = self.file().len()?;
        let mut walk = Walk {
            image: self,
            shape: self.shape,
            limit: file_len.next_multiple_of(cluster) + cluster,
            found: Found::default(),
            report: CheckReport::default(),
            owned: Vec::new(),
        };
        walk.report.total_clusters = self.size().div_ceil(cluster);
        self.walk_all(&mut walk, &meta)?;
        self.walk_counts(&mut walk, &mut meta, repair)?;
        let Walk { found, mut report, owned, .. } = walk;
        for claim in &owned {
            let several = found.get(claim.cluster) > 1;
            if claim.copied == several {
                let text = format!(
                    "{} for {:#x}: the flag of sole use is {}, the references found are {}",
                    claim.what,
                    claim.guest,
                    if claim.copied { "set" } else { "missing" },
                    found.get(claim.cluster)
                );
                if several { report.corrupt(text) } else { report.leak(text) }
            }
        }
        let flags_wrong = report.corruptions + report.leaks > 0;
        self.compare(&mut meta, &found, &mut report, repair)?;
        report.image_end = Some(found.end << self.shape.cluster_bits);
        drop(meta);
        if repair == Repair::All {
            if flags_wrong || report.corruptions_fixed + report.leaks_fixed > 0 {
                self.reown()?;
            }
            self.finish_repair(&mut report)?;
        } else if repair == Repair::Leaks {
            self.settle()?;
        }
        Ok(report)
    }

    /// Everything that the header leads to, but the counts themselves.
    fn walk_all(&self, walk: &mut Walk<'_>, meta: &Meta) -> Result<()> {
        let header = &meta.header;
        walk.refer(0, self.shape.cluster(), "the header");
        let active = Region { offset: header.l1_offset, len: u64::from(header.l1_entries) * 8 };
        walk.l1(active, &meta.l1, true)?;
        let mut table_len = 0;
        for snapshot in &meta.snapshots {
            let region =
                Region { offset: snapshot.l1_offset, len: u64::from(snapshot.l1_entries) * 8 };
            let words = read_words(self.file(), region.offset, snapshot.l1_entries as usize)?;
            walk.l1(region, &words, false)?;
            table_len += snapshot.encoded_len();
        }
        if table_len > 0 {
            walk.refer(header.snapshots_offset, table_len, "the snapshot table");
        }
        match bitmap::occupied(self.file(), header, &self.blame) {
            Ok(regions) => {
                for region in regions.iter().filter(|region| region.len > 0) {
                    walk.refer(region.offset, region.len, "a bitmap");
                }
            }
            Err(error) => walk.report.corrupt(error.to_string()),
        }
        if let Some(luks) = header.luks {
            walk.refer(luks.offset, luks.len, "the LUKS header");
        }
        Ok(())
    }

    /// The table of counts and its blocks; entries that cannot be right are
    /// dropped where that is allowed.
    fn walk_counts(&self, walk: &mut Walk<'_>, meta: &mut Meta, repair: Repair) -> Result<()> {
        let cluster = self.shape.cluster();
        walk.refer(
            meta.refs.table_offset,
            meta.refs.table_clusters() * cluster,
            "the reference count table",
        );
        for index in 0..meta.refs.table.len() {
            let offset = meta.refs.table[index] & OFFSET_MASK;
            if offset == 0 {
                continue;
            }
            let aligned = offset & (cluster - 1) == 0;
            let inside = offset + cluster <= walk.limit;
            let taken = walk.found.get(offset >> self.shape.cluster_bits) > 0;
            if aligned && inside && !taken {
                walk.refer(offset, cluster, "a reference count block");
                continue;
            }
            walk.report.corrupt(format!(
                "reference count block {index} at {offset:#x} is {}",
                match (aligned, inside) {
                    (false, _) => "not aligned",
                    (true, false) => "outside the file",
                    _ => "used for something else as well",
                }
            ));
            if repair == Repair::All {
                meta.refs.drop_block(index as u64);
                walk.report.corruptions_fixed += 1;
            }
        }
        Ok(())
    }

    fn compare(
        &self,
        meta: &mut Meta,
        found: &Found,
        report: &mut CheckReport,
        repair: Repair,
    ) -> Result<()> {
        let per = meta.refs.per_block();
        let end = meta.refs.end().max(found.end);
        meta.refs.reach(found.end);
        let mut cluster = 0;
        while cluster < end {
            let stop = end.min((cluster / per + 1) * per);
            if !meta.refs.has_block(cluster / per) && !found.has_any(cluster, stop) {
                cluster = stop;
                continue;
            }
            while cluster < stop {
                self.compare_one(meta, found, report, repair, cluster)?;
                cluster += 1;
            }
        }
        Ok(())
    }

    fn compare_one(
        &self,
        meta: &mut Meta,
        found: &Found,
        report: &mut CheckReport,
        repair: Repair,
        cluster: u64,
    ) -> Result<()> {
        let wanted = found.get(cluster);
        let stored = match meta.refs.get(self.file(), cluster, &self.blame) {
            Ok(stored) => stored,
            Err(_) if repair != Repair::All => return Ok(()),
            Err(error) => return Err(error),
        };
        if stored == wanted {
            return Ok(());
        }
        let text = format!("cluster {cluster} has reference count {stored}, found {wanted}");
        let leak = stored > wanted;
        if leak {
            report.leak(text)
        } else {
            report.corrupt(text)
        }
        let fix = repair == Repair::All || (repair == Repair::Leaks && leak);
        if fix {
            meta.refs.set(self.file(), cluster, wanted, &self.blame)?;
            if leak {
                report.leaks_fixed += 1;
            } else {
                report.corruptions_fixed += 1;
            }
        }
        Ok(())
    }

    /// After a repair the image says that it is sound, if it is.
    fn finish_repair(&self, report: &mut CheckReport) -> Result<()> {
        self.settle()?;
        let again = self.check_image(Repair::Nothing)?;
        report.corruptions_fixed = report.corruptions.saturating_sub(again.corruptions);
        report.leaks_fixed = report.leaks.saturating_sub(again.leaks);
        let mut meta = self.meta.lock();
        let marks = INCOMPAT_DIRTY | INCOMPAT_CORRUPT;
        if again.corruptions == 0 && meta.header.incompatible & marks != 0 {
            meta.header.incompatible &= !marks;
            meta.write_header(self.file())?;
            self.file().flush()?;
        }
        Ok(())
    }
}
