//! Random numbers, mostly of the interesting kind.

pub struct Random {
    state: u64,
    /// Contents for vectors, made in advance.
    pool: Vec<u8>,
}

const POOL: usize = 1 << 15;

impl Random {
    pub fn new(seed: u64) -> Random {
        let mut random = Random { state: seed, pool: Vec::new() };
        random.refill();
        random
    }

    /// SplitMix64.
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Makes new contents for vectors.
    pub fn refill(&mut self) {
        self.pool = (0..POOL / 8).flat_map(|_| self.lanes().to_le_bytes()).collect();
    }

    /// Fills with contents made in advance.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let start = self.below(((POOL - bytes.len()) / 8) as u64) as usize * 8;
        bytes.copy_from_slice(&self.pool[start..start + bytes.len()]);
    }

    /// Less than `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer near a limit of some width, small, or anything.
    pub fn integer(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(20).wrapping_sub(4),
            1 => {
                let edge = 1u64 << self.pick(&[7, 8, 15, 16, 31, 32, 63]);
                edge.wrapping_add(self.below(5)).wrapping_sub(2)
            }
            2 => 1 << self.below(64),
            3 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }

    /// 32 bits of a number that computations stumble over.
    pub fn float(&mut self) -> u32 {
        let sign = (self.next() as u32) & 0x8000_0000;
        sign | match self.below(10) {
            0 => 0,
            1 => 0x7f80_0000,
            2 => 0x7fc0_0000 | self.next() as u32 & 0x3f_ffff,
            3 => 0x7f80_0001 | self.next() as u32 & 0x3f_ffff,
            4 => self.next() as u32 & 0x7f_ffff,
            5 => (self.below(1000) as f32).to_bits(),
            6 => 0x3f80_0000 ^ 1 << self.below(31),
            7 => 0x7f00_0000 | self.next() as u32 & 0x7f_ffff,
            _ => self.next() as u32 & 0x7fff_ffff,
        }
    }

    pub fn double(&mut self) -> u64 {
        let sign = self.next() & 1 << 63;
        sign | match self.below(10) {
            0 => 0,
            1 => 0x7ff0 << 48,
            2 => 0x7ff8 << 48 | self.next() >> 16,
            3 => (0x7ff0 << 48) | (1 + (self.next() >> 16)),
            4 => self.next() >> 12,
            5 => (self.below(1000) as f64).to_bits(),
            6 => f64::from(f32::from_bits(self.float() & 0x7fff_ffff)).to_bits(),
            7 => (self.next() as i32 as f64).abs().to_bits(),
            _ => self.next() >> 1,
        }
    }

    /// Eight bytes of vector contents.
    pub fn lanes(&mut self) -> u64 {
        match self.below(4) {
            0 => u64::from(self.float()) << 32 | u64::from(self.float()),
            1 => self.double(),
            2 => self.integer(),
            _ => self.next(),
        }
    }

    /// A number in x87's format.
    pub fn extended(&mut self) -> [u8; 10] {
        let exponent = match self.below(6) {
            0 => 0,
            1 => 0x7fff,
            2 => 0x3fff + self.below(70) as u16,
            _ => self.next() as u16 & 0x7fff,
        };
        let exponent = exponent | (self.next() as u16 & 0x8000);
        let mantissa = match self.below(6) {
            0 => 0,
            1 => 1 << 63,
            2 => self.next(),
            _ => self.next() | 1 << 63,
        };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
        bytes[8..].copy_from_slice(&exponent.to_le_bytes());
        bytes
    }
}
