//! Reading, writing, zeroing and discarding.
//!
//! A write to clusters that are the image's own and have data goes straight to
//! the file. Any other write takes clusters first, writes data (with what the
//! cluster held besides) where nothing points to yet, and links it last. While
//! that is under way the guest clusters are `busy` and other writes to them
//! wait, so two writers never take a cluster each for the same place.

use std::ops::Range;

use super::Qcow2;
use super::entry::{Entry, PackedAt, Sub};
use super::meta::{Free, Meta};
use super::refcounts::Taken;
use crate::error::Result;
use crate::format::{Below, Extent, Format, Place, Run, State, read_by_map};

/// What to do for the first part of a write.
enum Step {
    InPlace { host: u64, len: u64 },
    Fresh(Fresh),
}

/// What is to be said of a cluster that was given up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// That there is nothing.
    Nothing,
    /// That it is zero, as what is below it.
    Zero,
    /// That it is zero, although something is below it.
    HiddenByZero,
}

/// Clusters that were taken for a write and are not linked yet.
struct Fresh {
    guest: u64,
    host: u64,
    clusters: u64,
    /// The bytes of the request that go there.
    len: u64,
    /// The host clusters are new, rather than the entry's own.
    moved: bool,
    virgin: bool,
    first: Entry,
    last: Entry,
}

impl Qcow2 {
    pub(super) fn map_range(&self, offset: u64, len: u64) -> Result<Extent> {
        let mut meta = self.meta.lock();
        let within = offset & (self.shape.cluster() - 1);
        if within + len <= self.shape.cluster()
            && self.cipher.is_none()
            && let Some((host, _)) = meta.data_cluster(offset)
        {
            // What most requests are.
            let at = Place { file: self.data, offset: host + within };
            return Ok(Extent { len, state: State::Data { at } });
        }
        let mut done = 0;
        let mut state = None;
        let table = meta.split(offset).0;
        while done < len {
            let at = offset + done;
            let guest = at & !(self.shape.cluster() - 1);
            if state.is_some() && meta.split(at).0 != table {
                break;
            }
            let entry = meta.entry(self.file(), guest)?;
            let mut within = at - guest;
            while within < self.shape.cluster() && done < len {
                let sub = (within >> self.shape.sub_bits()) as u32;
                let here = self.state_of(&entry, sub, within);
                let next = (u64::from(sub) + 1) << self.shape.sub_bits();
                match state {
                    None => state = Some(here),
                    Some(before) if continues(before, here, done) => {}
                    Some(before) => return Ok(Extent { len: done, state: before }),
                }
                // A packed cluster is one unit whatever the entry's shape.
                let next = if entry.packed.is_some() { self.shape.cluster() } else { next };
                done += next - within;
                within = next;
            }
            if matches!(state, Some(State::Packed { compressed: true })) {
                break;
            }
        }
        Ok(Extent { len: done.min(len), state: state.unwrap_or(State::Unallocated) })
    }

    fn state_of(&self, entry: &Entry, sub: u32, within: u64) -> State {
        let at = Place { file: self.data, offset: entry.host + within };
        match entry.sub(sub) {
            Sub::Unallocated => State::Unallocated,
            Sub::Zero => State::Zero { at: entry.has_host().then_some(at) },
            Sub::Packed => State::Packed { compressed: true },
            Sub::Data if self.cipher.is_some() => State::Packed { compressed: false },
            Sub::Data => State::Data { at },
        }
    }

    pub(super) fn read_range(&self, offset: u64, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        read_by_map(self, offset, buf, below)
    }

    /// Reads within one stretch that is compressed or encrypted.
    pub(super) fn read_coded(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        let cluster = self.shape.cluster();
        while !buf.is_empty() {
            let guest = offset & !(cluster - 1);
            let within = offset - guest;
            let len = buf.len().min((cluster - within) as usize);
            let (part, rest) = buf.split_at_mut(len);
            let entry = self.meta.lock().entry(self.file(), guest)?;
            match entry.packed {
                Some(packed) => self.unpack(guest, packed, within as usize, part)?,
                None => self.read_encrypted(entry.host + within, part)?,
            }
            offset += len as u64;
            buf = rest;
        }
        Ok(())
    }

    fn unpack(&self, guest: u64, at: PackedAt, within: usize, out: &mut [u8]) -> Result<()> {
        let cluster = self.shape.cluster() as usize;
        if out.len() < cluster {
            let last = self.unpacked.lock();
            if last.0 == at.offset {
                out.copy_from_slice(&last.1[within..within + out.len()]);
                return Ok(());
            }
        }
        let mut packed = vec![0; at.len as usize];
        self.file().read_at(at.offset, &mut packed)?;
        let bad = || self.blame.corrupt(format!("the compressed cluster for {guest:#x} is broken"));
        if out.len() == cluster {
            return if self.codec.unpack(&packed, out) { Ok(()) } else { Err(bad()) };
        }
        let mut whole = vec![0; cluster];
        if !self.codec.unpack(&packed, &mut whole) {
            return Err(bad());
        }
        out.copy_from_slice(&whole[within..within + out.len()]);
        *self.unpacked.lock() = (at.offset, whole);
        Ok(())
    }

    fn read_encrypted(&self, host: u64, out: &mut [u8]) -> Result<()> {
        let Some(cipher) = &self.cipher else {
            return self.file().read_at(host, out);
        };
        let start = host & !511;
        let end = (host + out.len() as u64).next_multiple_of(512);
        let mut sectors = vec![0; (end - start) as usize];
        self.file().read_at(start, &mut sectors)?;
        cipher.decrypt(start / 512, &mut sectors);
        let skip = (host - start) as usize;
        out.copy_from_slice(&sectors[skip..skip + out.len()]);
        Ok(())
    }

    /// Writes bytes to host clusters, encrypted where the image is.
    fn put(&self, host: u64, bytes: &[u8]) -> Result<()> {
        let Some(cipher) = &self.cipher else {
            return self.storages[usize::from(self.data)].write_at(host, bytes);
        };
        let start = host & !511;
        let end = (host + bytes.len() as u64).next_multiple_of(512);
        let mut sectors = vec![0; (end - start) as usize];
        if end - start != bytes.len() as u64 {
            self.file().read_at(start, &mut sectors)?;
            cipher.decrypt(start / 512, &mut sectors);
        }
        let skip = (host - start) as usize;
        sectors[skip..skip + bytes.len()].copy_from_slice(bytes);
        cipher.encrypt(start / 512, &mut sectors);
        self.file().write_at(start, &sectors)
    }

    pub(super) fn write_range(
        &self,
        mut offset: u64,
        mut data: &[u8],
        below: &dyn Below,
    ) -> Result<()> {
        self.before_change(offset, data.len() as u64)?;
        {
            let _ticket = self.epochs.enter();
            while !data.is_empty() {
                let step = self.plan(offset, data.len() as u64)?;
                let len = match &step {
                    Step::InPlace { len, .. } => *len,
                    Step::Fresh(fresh) => fresh.len,
                } as usize;
                let (part, rest) = data.split_at(len);
                match step {
                    Step::InPlace { host, .. } => self.put(host, part)?,
                    Step::Fresh(fresh) => self.write_fresh(&fresh, offset, part, below)?,
                }
                offset += len as u64;
                data = rest;
            }
        }
        self.commit_if_full()
    }

    /// Where a write can go without any change of metadata, all of it.
    pub(super) fn in_place(
        &self,
        mut offset: u64,
        mut len: u64,
        to: &mut Vec<Run>,
    ) -> Result<bool> {
        if self.cipher.is_some() || !self.writable || self.has_bitmaps() {
            return Ok(false);
        }
        let mut meta = self.meta.lock();
        let within = offset & (self.shape.cluster() - 1);
        if within + len <= self.shape.cluster()
            && let Some((host, true)) = meta.data_cluster(offset)
            && !meta.busy.contains(&(offset - within))
        {
            to.push((Place { file: self.data, offset: host + within }, len));
            return Ok(true);
        }
        while len > 0 {
            let guest = offset & !(self.shape.cluster() - 1);
            if meta.busy.contains(&guest) {
                return Ok(false);
            }
            let Some((host, run)) = self.run_in_place(&mut meta, offset, len)? else {
                return Ok(false);
            };
            to.push((Place { file: self.data, offset: host }, run));
            offset += run;
            len -= run;
        }
        Ok(true)
    }

    /// The host bytes that own data from `offset` on, side by side.
    fn run_in_place(&self, meta: &mut Meta, offset: u64, len: u64) -> Result<Option<(u64, u64)>> {
        let cluster = self.shape.cluster();
        let mut guest = offset & !(cluster - 1);
        let table = meta.split(offset).0;
        let mut within = offset - guest;
        let mut start = None;
        let mut run = 0;
        while run < len {
            if run > 0 && (meta.split(guest).0 != table || meta.busy.contains(&guest)) {
                break;
            }
            let entry = meta.entry(self.file(), guest)?;
            let first = *start.get_or_insert(entry.host + within);
            if !entry.owned() || entry.host + within != first + run {
                break;
            }
            let sub = (within >> self.shape.sub_bits()) as u32;
            let data = (entry.alloc >> sub).trailing_ones().min(self.shape.subs() - sub);
            if data == 0 {
                break;
            }
            let end = u64::from(sub + data) << self.shape.sub_bits();
            run += end - within;
            if end < cluster {
                break;
            }
            guest += cluster;
            within = 0;
        }
        Ok(start.filter(|_| run > 0).map(|host| (host, run.min(len))))
    }

    fn plan(&self, offset: u64, len: u64) -> Result<Step> {
        let cluster = self.shape.cluster();
        let guest = offset & !(cluster - 1);
        let mut meta = self.meta.lock();
        while meta.busy.contains(&guest) {
            self.idle.wait(&mut meta);
        }
        if let Some((host, len)) = self.run_in_place(&mut meta, offset, len)? {
            return Ok(Step::InPlace { host, len });
        }
        let first = meta.entry(self.file(), guest)?;
        meta.own_table(self.file(), guest)?;
        let within = offset - guest;
        if first.owned() {
            meta.busy.insert(guest);
            let len = len.min(cluster - within);
            let host = first.host;
            return Ok(Step::Fresh(Fresh {
                guest,
                host,
                clusters: 1,
                len,
                moved: false,
                virgin: false,
                first,
                last: first,
            }));
        }
        let mut wanted = 1;
        let mut last = first;
        let mut entries = vec![first];
        let table = meta.split(guest).0;
        while wanted * cluster < within + len {
            let next = guest + wanted * cluster;
            if meta.split(next).0 != table || meta.busy.contains(&next) {
                break;
            }
            let entry = meta.entry(self.file(), next)?;
            if entry.owned() {
                break;
            }
            entries.push(entry);
            wanted += 1;
        }
        let taken = self.take_clusters(&mut meta, guest, wanted)?;
        for index in 0..taken.clusters {
            meta.busy.insert(guest + index * cluster);
            last = entries[index as usize];
        }
        Ok(Step::Fresh(Fresh {
            guest,
            host: taken.offset,
            clusters: taken.clusters,
            len: len.min(taken.clusters * cluster - within),
            moved: true,
            virgin: taken.virgin,
            first,
            last,
        }))
    }

    /// Clusters for data. In a data file every cluster has its own place.
    fn take_clusters(&self, meta: &mut Meta, guest: u64, wanted: u64) -> Result<Taken> {
        if self.data != 0 {
            return Ok(Taken { offset: guest, clusters: wanted, virgin: false });
        }
        meta.refs.take(self.file(), wanted, &self.blame)
    }

    fn write_fresh(
        &self,
        fresh: &Fresh,
        offset: u64,
        data: &[u8],
        below: &dyn Below,
    ) -> Result<()> {
        let result = self.fill(fresh, offset, data, below);
        let mut meta = self.meta.lock();
        let result = match result {
            Ok((head, tail)) => self.link(&mut meta, fresh, head, tail),
            Err(error) => {
                if fresh.moved && self.data == 0 {
                    let len = fresh.clusters * self.shape.cluster();
                    // Nothing pointed there yet; a failure here only leaks.
                    let _leak = meta.refs.remove(self.file(), fresh.host, len, &self.blame);
                }
                Err(error)
            }
        };
        for index in 0..fresh.clusters {
            meta.busy.remove(&(fresh.guest + index * self.shape.cluster()));
        }
        drop(meta);
        self.idle.notify_all();
        result
    }

    /// Writes the data and what the boundary clusters held besides. Gives the
    /// subclusters that the first and the last cluster now have data in.
    fn fill(
        &self,
        fresh: &Fresh,
        offset: u64,
        data: &[u8],
        below: &dyn Below,
    ) -> Result<(u32, u32)> {
        let cluster = self.shape.cluster();
        let start = offset - fresh.guest;
        let end = start + data.len() as u64;
        if fresh.clusters == 1 {
            let subs = self.fill_one(fresh, 0, &fresh.first, start, data, below)?;
            return Ok((subs, subs));
        }
        let last = (fresh.clusters - 1) * cluster;
        let (mut from, mut to) = (0, data.len());
        let mut head = self.shape.all();
        let mut tail = self.shape.all();
        if start > 0 {
            from = (cluster - start) as usize;
            head = self.fill_one(fresh, 0, &fresh.first, start, &data[..from], below)?;
        }
        if end < last + cluster {
            to = (last - start) as usize;
            tail = self.fill_one(fresh, last, &fresh.last, 0, &data[to..], below)?;
        }
        if from < to {
            self.put(fresh.host + start + from as u64, &data[from..to])?;
        }
        Ok((head, tail))
    }

    /// Fills one cluster, `base` bytes into the stretch taken.
    fn fill_one(
        &self,
        fresh: &Fresh,
        base: u64,
        old: &Entry,
        start: u64,
        data: &[u8],
        below: &dyn Below,
    ) -> Result<u32> {
        let sub_bits = self.shape.sub_bits();
        let end = start + data.len() as u64;
        let mut subs =
            self.shape.mask((start >> sub_bits) as u32, end.div_ceil(1 << sub_bits) as u32);
        if fresh.moved {
            subs |= if old.packed.is_some() { self.shape.all() } else { old.alloc };
        }
        let low = u64::from(subs.trailing_zeros()) << sub_bits;
        let high = u64::from(32 - subs.leading_zeros()) << sub_bits;
        let host = fresh.host + base;
        let guest = fresh.guest + base;
        if low == start && high == end {
            self.put(host + start, data)?;
            return Ok(subs);
        }
        let empty = old.packed.is_none() && old.alloc & subs == 0;
        let zero_around =
            empty && (old.zero & subs == subs || below.is_zero(guest + low, high - low)?);
        if zero_around && fresh.virgin && self.cipher.is_none() {
            // The file ends before, or has a hole here: zeroes already.
            self.put(host + start, data)?;
            return Ok(subs);
        }
        let mut whole = vec![0; (high - low) as usize];
        if !zero_around {
            self.read_range(guest + low, &mut whole, below)?;
        }
        whole[(start - low) as usize..(end - low) as usize].copy_from_slice(data);
        self.put(host + low, &whole)?;
        Ok(subs)
    }

    fn link(&self, meta: &mut Meta, fresh: &Fresh, head: u32, tail: u32) -> Result<()> {
        for index in 0..fresh.clusters {
            let step = index * self.shape.cluster();
            let guest = fresh.guest + step;
            let old = meta.entry(self.file(), guest)?;
            let subs = match index {
                0 => head,
                _ if index + 1 == fresh.clusters => tail,
                _ => self.shape.all(),
            };
            let keep = if old.packed.is_some() { Entry::default() } else { old };
            let entry = Entry {
                host: fresh.host + step,
                copied: true,
                packed: None,
                alloc: keep.alloc | subs,
                zero: keep.zero & !subs,
            };
            meta.set_entry(self.file(), guest, entry)?;
            if fresh.moved {
                self.drop_content(meta, &old);
            }
        }
        Ok(())
    }

    /// The clusters of an entry that was replaced lose a reference.
    pub(super) fn drop_content(&self, meta: &mut Meta, old: &Entry) {
        if let Some(packed) = old.packed {
            meta.frees.push(Free { offset: packed.offset, len: packed.len });
        } else if old.host != 0 && self.data == 0 {
            meta.frees.push(Free { offset: old.host, len: self.shape.cluster() });
        }
    }

    /// Zeroes: whole subclusters by their entries, the rest by writing.
    pub(super) fn zero_range(
        &self,
        offset: u64,
        len: u64,
        unmap: bool,
        below: &dyn Below,
    ) -> Result<()> {
        self.before_change(offset, len)?;
        let end = offset + len;
        {
            let _ticket = self.epochs.enter();
            let mut at = offset;
            while at < end {
                let guest = at & !(self.shape.cluster() - 1);
                let stop = end.min(guest + self.shape.cluster());
                let said = self.zero_entry(guest, at, stop, unmap, below)?;
                self.write_zero_bytes(at, said.start - at, below)?;
                self.write_zero_bytes(said.end, stop - said.end, below)?;
                at = stop;
            }
        }
        self.commit_if_full()
    }

    /// Zeroes as data, where they do not stand already.
    pub(super) fn write_zero_bytes(
        &self,
        mut offset: u64,
        mut len: u64,
        below: &dyn Below,
    ) -> Result<()> {
        while len > 0 {
            let extent = self.map_range(offset, len)?;
            let already = match extent.state {
                State::Zero { .. } => true,
                State::Unallocated => below.is_zero(offset, extent.len)?,
                _ => false,
            };
            let step = extent.len.min(1 << 20);
            if already {
                offset += extent.len;
                len -= extent.len;
                continue;
            }
            self.write_range(offset, &vec![0; step as usize], below)?;
            offset += step;
            len -= step;
        }
        Ok(())
    }

    /// Zeroes what it can of `from..to`, which lies in one cluster, by the cluster's
    /// entry; gives the part for which that was possible.
    fn zero_entry(
        &self,
        guest: u64,
        from: u64,
        to: u64,
        unmap: bool,
        below: &dyn Below,
    ) -> Result<Range<u64>> {
        let cluster = self.shape.cluster();
        let below_zero = below.is_zero(guest, cluster)?;
        let mut meta = self.meta.lock();
        while meta.busy.contains(&guest) {
            self.idle.wait(&mut meta);
        }
        let old = meta.entry(self.file(), guest)?;
        // Nothing that somebody sees lies behind the disk's end.
        let stop = if to == self.size() { guest + cluster } else { to };
        if meta.header.version < 3 {
            // No zero flag: only what shows nothing below can be let go.
            if old == Entry::default() && below_zero {
                return Ok(from..to);
            }
            if !(stop - from == cluster && below_zero && unmap) {
                return Ok(from..from);
            }
            meta.set_entry(self.file(), guest, Entry::default())?;
            self.drop_content(&mut meta, &old);
            return Ok(from..to);
        }
        let (first, last) = self.zeroable(&old, from - guest, stop - guest, below_zero);
        if first >= last || (old.packed.is_some() && last - first < self.shape.subs()) {
            return Ok(from..from);
        }
        let subs = self.shape.mask(first, last);
        let keep_host = old.owned() && (!unmap || old.alloc & !subs != 0 || self.data != 0);
        let mut entry = Entry { zero: subs, ..Entry::default() };
        if old.packed.is_none() {
            entry.alloc = old.alloc & !subs;
            entry.zero |= old.zero;
            if keep_host || entry.alloc != 0 {
                (entry.host, entry.copied) = (old.host, old.copied);
            }
        }
        let bits = self.shape.sub_bits();
        let start = guest + (u64::from(first) << bits);
        let end = (guest + (u64::from(last) << bits)).min(self.size());
        let said = start.max(from)..end.min(to);
        if entry == old {
            return Ok(said);
        }
        meta.set_entry(self.file(), guest, entry)?;
        if old.packed.is_some() || (old.host != 0 && entry.host == 0) {
            self.drop_content(&mut meta, &old);
        }
        drop(meta);
        if self.data != 0 {
            self.storages[1].write_zeroes(start, end - start, unmap)?;
        }
        Ok(said)
    }

    /// Which subclusters may become zero when `from..to` of a cluster is zeroed: all that
    /// it covers, and those at its ends whose rest is zero already.
    fn zeroable(&self, old: &Entry, from: u64, to: u64, below_zero: bool) -> (u32, u32) {
        let bits = self.shape.sub_bits();
        let is_zero = |at: u64| match old.sub((at >> bits) as u32) {
            Sub::Zero => true,
            Sub::Unallocated => below_zero,
            Sub::Data | Sub::Packed => false,
        };
        let unit = 1_u64 << bits;
        let up = |at: u64, up: bool| if up { at.div_ceil(unit) } else { at >> bits };
        let first = up(from, !from.is_multiple_of(unit) && !is_zero(from));
        let last = up(to, !to.is_multiple_of(unit) && is_zero(to));
        (first as u32, last as u32)
    }

    /// Gives up whole clusters, which are zero afterwards as far as the version can say so.
    pub(super) fn discard_range(&self, offset: u64, len: u64, below: &dyn Below) -> Result<()> {
        let cluster = self.shape.cluster();
        self.give_up_range(offset, len, |guest| {
            Ok(if below.is_zero(guest, cluster)? { Gone::Zero } else { Gone::HiddenByZero })
        })
    }

    /// Gives up whole clusters as if nothing had ever been there.
    pub(super) fn forget_range(&self, offset: u64, len: u64) -> Result<()> {
        self.give_up_range(offset, len, |_| Ok(Gone::Nothing))
    }

    fn give_up_range(
        &self,
        offset: u64,
        len: u64,
        afterwards: impl Fn(u64) -> Result<Gone>,
    ) -> Result<()> {
        let cluster = self.shape.cluster();
        let mut end = offset + len;
        if end == self.size() {
            end = end.next_multiple_of(cluster);
        }
        let start = offset.next_multiple_of(cluster);
        let end = end & !(cluster - 1);
        if start >= end {
            return Ok(());
        }
        self.before_change(offset, len)?;
        {
            let _ticket = self.epochs.enter();
            let mut guest = start;
            while guest < end {
                guest += self.give_up(guest, afterwards(guest)?)?;
            }
        }
        self.commit_if_full()
    }

    /// Lets go of one cluster; gives how far the caller may go on.
    fn give_up(&self, guest: u64, afterwards: Gone) -> Result<u64> {
        let cluster = self.shape.cluster();
        let mut meta = self.meta.lock();
        let (l1_index, index) = meta.split(guest);
        // What is below may change later on: then it must not show through.
        let hide = match afterwards {
            Gone::Nothing => false,
            Gone::Zero => meta.header.backing.is_some(),
            Gone::HiddenByZero => true,
        };
        if !hide && meta.l1.get(l1_index).copied().unwrap_or(0) == 0 {
            return Ok((self.shape.entries() - index) * cluster);
        }
        while meta.busy.contains(&guest) {
            self.idle.wait(&mut meta);
        }
        let old = meta.entry(self.file(), guest)?;
        let mut entry = Entry::default();
        if meta.header.version >= 3 {
            if hide || (afterwards == Gone::Zero && old != entry) {
                entry.zero = self.shape.all();
            }
        } else if afterwards == Gone::HiddenByZero {
            return Ok(cluster);
        }
        if old != entry {
            meta.set_entry(self.file(), guest, entry)?;
            self.drop_content(&mut meta, &old);
            drop(meta);
            if self.data != 0 {
                self.storages[1].write_zeroes(guest, cluster, true)?;
            }
        }
        Ok(cluster)
    }

    /// Stores a compressed cluster right behind the one before.
    pub(super) fn write_compressed(&self, guest: u64, packed: &[u8]) -> Result<()> {
        self.before_change(guest, self.shape.cluster())?;
        let len = packed.len() as u64;
        {
            let _ticket = self.epochs.enter();
            let mut meta = self.meta.lock();
            while meta.busy.contains(&guest) {
                self.idle.wait(&mut meta);
            }
            let old = meta.entry(self.file(), guest)?;
            meta.own_table(self.file(), guest)?;
            let offset = self.take_bytes(&mut meta, len)?;
            if let Err(error) = self.file().write_at(offset, packed) {
                meta.frees.push(Free { offset, len });
                return Err(error);
            }
            let at = PackedAt { offset, len };
            meta.set_entry(self.file(), guest, Entry { packed: Some(at), ..Entry::default() })?;
            self.drop_content(&mut meta, &old);
        }
        self.commit_if_full()
    }

    /// Room for a compressed cluster: in the last cluster that such data went
    /// to, in that and the one after it, or in a new one.
    fn take_bytes(&self, meta: &mut Meta, len: u64) -> Result<u64> {
        let cluster = self.shape.cluster();
        let tail = meta.packed_tail;
        let shared = tail != 0 && {
            let index = tail >> self.shape.cluster_bits;
            let count = meta.refs.get(self.file(), index, &self.blame)?;
            count > 0 && count < meta.refs.max()
        };
        let room = (cluster - tail % cluster) % cluster;
        let offset = if shared && len <= room {
            meta.refs.add(self.file(), tail, len, &self.blame)?;
            tail
        } else {
            let taken = meta.refs.take(self.file(), 1, &self.blame)?;
            if shared && room > 0 && taken.offset == tail + room {
                meta.refs.add(self.file(), tail, room, &self.blame)?;
                tail
            } else {
                taken.offset
            }
        };
        let end = offset + len;
        meta.packed_tail = if end.is_multiple_of(cluster) { 0 } else { end };
        Ok(offset)
    }
}

/// Whether a state goes on from one `done` bytes before.
fn continues(before: State, here: State, done: u64) -> bool {
    match (before, here) {
        (State::Data { at: first }, State::Data { at })
        | (State::Zero { at: Some(first) }, State::Zero { at: Some(at) }) => {
            first.file == at.file && first.offset + done == at.offset
        }
        (State::Packed { compressed: true }, _) => false,
        (before, here) => before == here,
    }
}
