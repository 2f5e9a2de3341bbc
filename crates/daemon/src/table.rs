//! Every instance of this daemon, with what is known of it now.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use guise_api::{ApiError, Code, Instance};
use guise_worker::body::Size;
use tokio::sync::{Notify, watch};

use crate::objects::Objects;

/// One instance.
pub struct Entry {
    pub id: String,
    current: watch::Sender<Arc<Instance>>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
    /// Something has changed that its task has to look at.
    pub wake: Notify,
    attached: AtomicUsize,
    /// Kept for somebody who has said that he will attach.
    expected: Mutex<Option<Attached>>,
    /// The terminal of whoever started it, for the next life.
    pub console: Mutex<Option<Size>>,
    /// Why it is there yet, although it is being removed.
    kept: watch::Sender<Option<ApiError>>,
}

/// Counts somebody who wants to see the instance's end before it goes.
pub struct Attached(Arc<Entry>);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.attached.fetch_sub(1, Ordering::SeqCst);
        self.0.wake.notify_one();
    }
}

/// Whether a change is worth a durable commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It can be found out again.
    InMemory,
    Durably,
}

impl Entry {
    pub fn new(instance: Instance) -> Arc<Entry> {
        Arc::new(Entry {
            id: instance.id.clone(),
            current: watch::Sender::new(Arc::new(instance)),
            changing: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            attached: AtomicUsize::new(0),
            expected: Mutex::default(),
            console: Mutex::default(),
            kept: watch::Sender::default(),
        })
    }

    /// Keeps the instance's end for somebody who will attach, but not for ever.
    pub fn expect_attach(self: &Arc<Entry>) {
        const PATIENCE: Duration = Duration::from_secs(30);
        let place = |entry: &Entry, guard| {
            let mut expected = entry.expected.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *expected, guard)
        };
        drop(place(self, Some(self.attach())));
        let entry = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            if let Some(entry) = entry.upgrade() {
                drop(place(&entry, None));
            }
        });
    }

    pub fn instance(&self) -> Arc<Instance> {
        self.current.borrow().clone()
    }

    pub fn watch(&self) -> watch::Receiver<Arc<Instance>> {
        self.current.subscribe()
    }

    pub fn attach(self: &Arc<Entry>) -> Attached {
        self.attached.fetch_add(1, Ordering::SeqCst);
        Attached(self.clone())
    }

    /// The same for whoever was expected, if anybody was.
    pub fn attach_as_expected(self: &Arc<Entry>) -> Attached {
        let attached = self.attach();
        drop(self.expected.lock().unwrap_or_else(PoisonError::into_inner).take());
        attached
    }

    pub fn is_attached(&self) -> bool {
        self.attached.load(Ordering::SeqCst) > 0
    }

    /// Changes the instance: in the store first, if it is to be kept.
    pub async fn change(
        &self,
        objects: &Objects,
        keep: Keep,
        change: impl FnOnce(&mut Instance) -> Result<(), ApiError>,
    ) -> Result<Arc<Instance>, ApiError> {
        let _one = self.changing.lock().await;
        let before = self.instance();
        let mut after = Instance::clone(&before);
        change(&mut after)?;
        if after == *before {
            return Ok(before);
        }
        if after.spec != before.spec {
            after.generation += 1;
        }
        if keep == Keep::Durably {
            let old_name = (after.name != before.name).then_some(before.name.as_str());
            objects.update(&mut after, old_name).await?;
        }
        let after = Arc::new(after);
        self.current.send_replace(after.clone());
        objects.changes.instance(&after);
        self.wake.notify_one();
        Ok(after)
    }

    /// Waits until the instance is so, or is gone.
    pub async fn until(&self, so: impl Fn(&Instance) -> bool) -> Arc<Instance> {
        let mut watch = self.watch();
        match watch.wait_for(|instance| so(instance) || instance.is_gone()).await {
            Ok(instance) => instance.clone(),
            Err(_) => self.instance(),
        }
    }

    /// Tells why it cannot be removed, or that nothing is known to be in the way.
    pub fn stays(&self, why: Option<ApiError>) {
        self.kept.send_replace(why);
    }

    /// Waits until it cannot be removed, and says why.
    pub async fn until_it_stays(&self) -> ApiError {
        let mut kept = self.kept.subscribe();
        loop {
            if let Some(why) = kept.borrow_and_update().clone() {
                return why;
            }
            // It cannot close before this entry goes.
            let _ = kept.changed().await;
        }
    }
}

/// An instance that is no longer in the store has no revision.
pub trait Gone {
    fn is_gone(&self) -> bool;
}

impl Gone for Instance {
    fn is_gone(&self) -> bool {
        self.revision == 0
    }
}

#[derive(Default)]
pub struct Table {
    entries: RwLock<BTreeMap<String, Arc<Entry>>>,
}

impl Table {
    /// By its whole id.
    pub fn get(&self, id: &str) -> Option<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub fn insert(&self, entry: Arc<Entry>) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.insert(entry.id.clone(), entry);
    }

    /// Takes it out, and tells whoever waits for it.
    pub fn remove(&self, entry: &Entry) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(&entry.id);
        entry.current.send_modify(|instance| {
            let mut gone = Instance::clone(instance);
            gone.revision = 0;
            *instance = Arc::new(gone);
        });
    }

    /// By name, by id, or by the beginning of an id that no other of the project has.
    pub fn find(&self, project: &str, said: &str) -> Result<Arc<Entry>, ApiError> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let own = || entries.values().filter(|entry| entry.instance().project == project);
        if let Some(named) = own().find(|entry| entry.instance().name == said) {
            return Ok(named.clone());
        }
        let mut matching = own().filter(|entry| !said.is_empty() && entry.id.starts_with(said));
        match (matching.next(), matching.next()) {
            (Some(only), None) => Ok(only.clone()),
            (Some(_), Some(_)) => Err(ApiError::invalid(format!(
                "several instances have an id that begins with {said}"
            ))),
            (None, _) => Err(ApiError::new(Code::NotFound, format!("there is no instance {said}"))
                .hint("guise ps -a lists them")),
        }
    }
}
