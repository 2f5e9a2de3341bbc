//! What lies between PCI's functions and the rest of the machine: nothing, or an IOMMU.

use std::sync::Arc;

use guise_devices::dma::Dma;
use guise_devices::ioapic::IoApic;
use guise_devices::iommu::{self, Iommu, RequesterId};
use guise_devices::irq::MsiSink;
use guise_engine::{GuestMemory, Msi, Vm};

use crate::layout;

const _: () = assert!(layout::IOMMU == iommu::ADDRESS);

/// The way from functions to memory and to the engine.
#[derive(Clone)]
pub(crate) struct Upstream {
    memory: GuestMemory,
    sink: Arc<dyn MsiSink>,
    iommu: Option<Arc<Iommu>>,
}

impl Upstream {
    pub fn new(memory: &GuestMemory, vm: &Arc<dyn Vm>, with_iommu: bool) -> Self {
        let vm = vm.clone();
        let sink: Arc<dyn MsiSink> = Arc::new(move |msi: Msi| {
            if let Err(error) = vm.signal_msi(msi) {
                tracing::error!(%error, ?msi, "an interrupt message did not reach the engine");
            }
        });
        let iommu = with_iommu.then(|| Iommu::new(memory.clone(), sink.clone()));
        Upstream { memory: memory.clone(), sink, iommu }
    }

    pub fn iommu(&self) -> Option<&Arc<Iommu>> {
        self.iommu.as_ref()
    }

    /// Where the messages of the function in a slot go.
    pub fn messages(&self, slot: u8) -> Arc<dyn MsiSink> {
        match &self.iommu {
            Some(iommu) => iommu.requester(RequesterId::in_slot(slot)),
            None => self.sink.clone(),
        }
    }

    /// Memory as the function in a slot reaches it.
    pub fn dma(&self, slot: u8) -> Arc<dyn Dma> {
        match &self.iommu {
            Some(iommu) => iommu.requester(RequesterId::in_slot(slot)),
            None => Arc::new(self.memory.clone()),
        }
    }

    /// Guest memory for virtio functions. They offer no VIRTIO_F_ACCESS_PLATFORM: as the
    /// standard has it their addresses are those of memory, and are not translated.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// An I/O APIC whose routes `vm` is told of, as messages that have gone all the way.
    pub fn io_apic(&self, vm: &Arc<dyn Vm>) -> Arc<IoApic> {
        let vm = vm.clone();
        let route = move |pin, msi| {
            if let Err(error) = vm.route_ioapic_pin(pin, msi) {
                tracing::error!(%error, pin, "the engine was not told of an interrupt's route");
            }
        };
        let Some(iommu) = &self.iommu else {
            let io_apic = IoApic::new(self.sink.clone());
            io_apic.watch_routes(route);
            return io_apic;
        };
        let requester = iommu.io_apic();
        let io_apic = IoApic::remappable(requester.clone());
        io_apic.watch_routes(move |pin, msi| {
            route(pin, msi.and_then(|msi| requester.preview(msi)));
        });
        // The I/O APIC holds the IOMMU, which therefore must not hold it.
        let watched = Arc::downgrade(&io_apic);
        iommu.watch(move || {
            if let Some(io_apic) = watched.upgrade() {
                io_apic.refresh_routes();
            }
        });
        io_apic
    }
}
