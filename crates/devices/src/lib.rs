//! What a machine is wired from, virtio excepted: interrupt controllers, timers,
//! serial port, real-time clock, ACPI registers, PCI, IOMMU.
//!
//! A device knows nothing of engines and boards. It sees the world through
//!
//! - [`bus::Device`]: accesses to its registers come in here;
//! - [`irq::IrqLine`] and [`irq::MsiSink`]: interrupts go out there;
//! - [`clock::Clock`]: the machine's own time, which stands still while the machine
//!   is paused, and timers on it;
//! - [`dma::Dma`], or guest memory itself: where it does DMA.
//!
//! Every device locks itself, so it is shared freely between vCPU threads, the timer
//! thread and backends. Two rules keep that free of deadlocks: a device never calls a
//! bus while it holds its own lock, and interrupt lines lead one way only, from
//! devices to interrupt controllers to the engine.
//!
//! Each device has a serialisable state type, which `state()` returns and
//! `set_state()` takes. A board saves them while the machine is paused.

pub mod acpi;
pub mod bus;
pub mod clock;
pub mod dma;
pub mod edu;
pub mod fw_cfg;
pub mod hpet;
pub mod i8042;
pub mod ioapic;
pub mod iommu;
pub mod irq;
pub mod panic;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod power;
pub mod rtc;
pub mod testdev;
pub mod uart;
