//! Memory for generated code.
//!
//! One memory object is mapped twice, once for writing and once for executing, so
//! that no page is ever both. Code is placed front to back, data that belongs to it back
//! to front; there is no free list,
//! because code caches forget everything at once or nothing.
//!
//! Generated code is spread out, and so is its data. So the host is asked for large pages, a
//! piece at a time, when the first of it is used: that costs less than the faults of the small
//! pages would.

use std::io;

/// A piece of executable memory that can be written through another address.
pub struct Arena {
    writable: *mut u8,
    executable: *const u8,
    size: usize,
    used: usize,
    /// Bytes at the end that are for data.
    data: usize,
    /// Bytes at the front, and at the end, that the host was asked for in large pages.
    large: [usize; 2],
}

/// A large page of the host.
const PIECE: usize = 2 << 20;

// SAFETY: the pointers are to shared mappings that live as long as the arena and are
// not tied to a thread; writing needs `&mut self`.
unsafe impl Send for Arena {}
// SAFETY: `&Arena` gives addresses only.
unsafe impl Sync for Arena {}

impl Arena {
    /// Reserves `size` bytes; memory is used as code is placed.
    pub fn new(size: usize) -> io::Result<Arena> {
        let size = size.next_multiple_of(4096);
        // SAFETY: a new memory object; the name is a C string.
        let fd = unsafe { libc::memfd_create(c"guise-code".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let map = |protection| map_aligned(size, protection, fd);
        let mappings = (|| {
            // SAFETY: `fd` is ours and open.
            if unsafe { libc::ftruncate(fd, size as libc::off_t) } < 0 {
                return Err(io::Error::last_os_error());
            }
            let writable = map(libc::PROT_READ | libc::PROT_WRITE)?;
            let executable = map(libc::PROT_READ | libc::PROT_EXEC).inspect_err(|_| {
                // SAFETY: mapped just above, and nobody has the address.
                unsafe { libc::munmap(writable.cast(), size) };
            })?;
            Ok((writable, executable.cast_const()))
        })();
        // SAFETY: mappings keep the object; the descriptor is ours and not used again.
        unsafe { libc::close(fd) };
        let (writable, executable) = mappings?;
        Ok(Arena { writable, executable, size, used: 0, data: 0, large: [0, 0] })
    }

    /// Asks the host for large pages for what is used now and was not before. It may not
    /// have any: then it gives small ones, as they are touched.
    fn enlarge(&mut self) {
        let whole = self.size / PIECE * PIECE;
        while self.large[0] < self.used && self.large[0] + PIECE <= whole {
            self.ask(self.large[0]);
            self.large[0] += PIECE;
        }
        // At the end, the first piece is what is left of whole ones.
        let behind = self.size - whole;
        while self.large[1] + behind < self.data && self.large[1] + PIECE <= whole {
            self.large[1] += PIECE;
            self.ask(whole - self.large[1]);
        }
    }

    fn ask(&mut self, offset: usize) {
        // SAFETY: inside of both mappings. What is written is what stands there; large pages
        // can be made where there is a small one.
        unsafe {
            let first = self.writable.add(offset);
            first.write_volatile(first.read_volatile());
            for mapping in [self.writable.cast_const(), self.executable] {
                libc::madvise(mapping.add(offset) as *mut _, PIECE, libc::MADV_COLLAPSE);
            }
        }
    }

    /// Address range that code of this arena executes in.
    pub fn range(&self) -> std::ops::Range<usize> {
        let start = self.executable as usize;
        start..start + self.size
    }

    pub fn used(&self) -> usize {
        self.used
    }

    /// Bytes of code and of data.
    pub fn taken(&self) -> usize {
        self.used + self.data
    }

    pub fn free(&self) -> usize {
        self.size - self.taken()
    }

    /// Where the data that was reserved last begins. Code reads it there; it is written
    /// through its writable twin, [`Arena::twin`] bytes further.
    pub fn data(&self) -> u64 {
        self.executable as u64 + (self.size - self.data) as u64
    }

    pub fn twin(&self) -> u64 {
        (self.writable as u64).wrapping_sub(self.executable as u64)
    }

    /// Reserves room for data in front of what is reserved already. False where there is
    /// none.
    pub fn reserve(&mut self, bytes: usize) -> bool {
        if bytes > self.free() {
            return false;
        }
        self.data += bytes;
        self.enlarge();
        true
    }

    /// The address at which the next placed code will execute.
    pub fn next(&self) -> u64 {
        self.executable as u64 + self.used as u64
    }

    /// Places code, 16-byte aligned; none where it does not fit. The code was made
    /// for address [`Arena::next`].
    pub fn place(&mut self, code: &[u8]) -> Option<*const u8> {
        let end = self.used.checked_add(code.len())?.next_multiple_of(16);
        if end > self.size - self.data {
            return None;
        }
        let place = self.used;
        self.used = end;
        self.enlarge();
        // SAFETY: `place + code.len()` lies within both mappings, checked above; no
        // other reference to this memory exists, and nothing executes past `used`.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(place), code.len());
        }
        Some(self.executable.wrapping_add(place))
    }

    /// The writable twin of an executable address, for patching placed code.
    pub fn writable(&self, executable: *const u8) -> *mut u8 {
        let offset = (executable as usize).wrapping_sub(self.executable as usize);
        assert!(offset < self.size, "address {executable:p} is not in this arena");
        self.writable.wrapping_add(offset)
    }

    /// Forgets all code. The caller knows that nothing executes there.
    pub fn clear(&mut self) {
        self.used = 0;
        self.data = 0;
    }

    /// The same, and lets the host have the memory until code is placed again.
    pub fn give_back(&mut self) {
        self.clear();
        self.large = [0, 0];
        // SAFETY: the range is the writable mapping. That its bytes turn into zeros is all
        // the same, because nothing in it is used any more; what the host does not take
        // stays as it is.
        unsafe { libc::madvise(self.writable.cast(), self.size, libc::MADV_REMOVE) };
    }
}

/// Maps an object where large pages of the host can begin, if it is as large as one.
fn map_aligned(size: usize, protection: i32, fd: i32) -> io::Result<*mut u8> {
    let room = if size < PIECE { size } else { size + PIECE };
    let map = |address, size, protection, flags, fd| {
        // SAFETY: at an address of the kernel's choice, or in place of what was reserved here.
        let address = unsafe { libc::mmap(address, size, protection, flags, fd, 0) };
        let failed = address == libc::MAP_FAILED;
        if failed { Err(io::Error::last_os_error()) } else { Ok(address.cast::<u8>()) }
    };
    let unused = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let reserved = map(std::ptr::null_mut(), room, libc::PROT_NONE, unused, -1)?;
    let before = if room == size { 0 } else { reserved.align_offset(PIECE) };
    let start = reserved.wrapping_add(before);
    let mapped = map(start.cast(), size, protection, libc::MAP_SHARED | libc::MAP_FIXED, fd);
    let kept = if mapped.is_ok() { size } else { 0 };
    for (piece, length) in [(reserved, before), (start.wrapping_add(kept), room - before - kept)] {
        if length != 0 {
            // SAFETY: what was reserved and is not used.
            unsafe { libc::munmap(piece.cast(), length) };
        }
    }
    mapped
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: both mappings are ours, of this size, and go with the arena.
        unsafe {
            libc::munmap(self.writable.cast(), self.size);
            libc::munmap(self.executable.cast_mut().cast(), self.size);
        }
    }
}

#[cfg(test)]
mod tests;
