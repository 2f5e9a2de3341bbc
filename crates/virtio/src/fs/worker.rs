//! The threads of the queues: from a chain to a request and back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use super::protocol::{
    ANSWER_HEADER, Arguments, BATCH_FORGET, FORGET, Header, INTERRUPT, MOST_ARGUMENTS, MOST_DATA,
    READ, REQUEST_HEADER, WRITE,
};
use super::server::{Data, Outcome, Server};
use crate::queue::{Chain, Queue, QueueError};
use crate::worker::{Handler, Rest};

/// Between two looks whether a lock is free.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);
/// Requests that may wait for locks.
const MOST_HELD: usize = 1024;
/// What comes between header and data of a write.
const WRITE_ARGUMENTS: u64 = 40;

/// A request that waits for a lock.
pub struct Held(Chain);

/// The queue for what must not wait: it only ever makes the server forget.
pub struct Urgent(pub Arc<Server>);

impl Handler for Urgent {
    fn process(&mut self, queue: &mut Queue, stopping: &AtomicBool) -> Result<Rest, QueueError> {
        while !stopping.load(Ordering::Relaxed) {
            let Some(chain) = queue.pop()? else { break };
            let written = answer(&self.0, queue, &chain)?.unwrap_or(0);
            queue.push(chain, written)?;
        }
        Ok(Rest::Drained)
    }
}

/// A queue of requests.
pub struct Requests {
    server: Arc<Server>,
    index: usize,
    held: Vec<Held>,
}

impl Requests {
    pub fn new(server: Arc<Server>, index: usize) -> Self {
        let held = server.take_held(index);
        Self { server, index, held }
    }

    /// Looks whether locks have become free.
    fn retry(&mut self, queue: &mut Queue) -> Result<(), QueueError> {
        for Held(chain) in std::mem::take(&mut self.held) {
            match answer(&self.server, queue, &chain)? {
                Some(written) => queue.push(chain, written)?,
                None => self.held.push(Held(chain)),
            }
        }
        Ok(())
    }
}

impl Handler for Requests {
    fn process(&mut self, queue: &mut Queue, stopping: &AtomicBool) -> Result<Rest, QueueError> {
        while !stopping.load(Ordering::Relaxed) {
            let Some(chain) = queue.pop()? else { break };
            match answer(&self.server, queue, &chain)? {
                Some(written) => queue.push(chain, written)?,
                None if self.held.len() < MOST_HELD => self.held.push(Held(chain)),
                None => {
                    let header = Header::parse(&chain.reader(queue.memory()).read_array()?);
                    let written = finish(queue, &chain, &header, Err(Errno::NOLCK))?;
                    queue.push(chain, written)?;
                }
            }
        }
        self.retry(queue)?;
        if self.held.is_empty() {
            return Ok(Rest::Drained);
        }
        // More requests are to be heard of meanwhile.
        Ok(match queue.enable_notification()? {
            true => Rest::Until(Duration::ZERO),
            false => Rest::Until(LOCK_INTERVAL),
        })
    }

    fn finish(&mut self, _: &mut Queue) -> Result<(), QueueError> {
        self.server.keep_held(self.index, std::mem::take(&mut self.held));
        Ok(())
    }
}

/// Does what a chain asks for. Returns how many bytes the answer has, or nothing if the
/// request has to wait.
fn answer(server: &Server, queue: &Queue, chain: &Chain) -> Result<Option<u32>, QueueError> {
    let memory = queue.memory();
    let mut reader = chain.reader(memory);
    let header = Header::parse(&reader.read_array::<REQUEST_HEADER>()?);
    let length = if header.operation == WRITE { WRITE_ARGUMENTS } else { reader.remaining() };
    if length > MOST_ARGUMENTS {
        return finish(queue, chain, &header, Err(Errno::INVAL)).map(Some);
    }
    let mut arguments = vec![0; length as usize];
    let length = reader.read(&mut arguments)?;
    let mut arguments = Arguments(&arguments[..length]);
    if matches!(header.operation, FORGET | BATCH_FORGET) {
        if let Err(error) = server.forget(&header, &mut arguments) {
            tracing::debug!(%error, "a guest forgets in a way that makes no sense");
        }
        return Ok(Some(0));
    }
    if header.operation == INTERRUPT {
        // Nothing here takes long, except for locks, and no driver sends this for them.
        return Ok(Some(0));
    }
    let mut writer = chain.writer(memory);
    let Some(room) = writer.remaining().checked_sub(ANSWER_HEADER as u64) else {
        return Ok(Some(0));
    };
    let room = room.min(u64::from(MOST_DATA));
    let segments = match header.operation {
        WRITE => reader.into_pieces(u64::from(MOST_DATA)).collect(),
        READ => {
            writer.skip(ANSWER_HEADER as u64);
            writer.into_pieces(room).collect()
        }
        _ => Vec::new(),
    };
    let data = Data { memory, segments };
    match server.perform(&header, &mut arguments, &data, room as usize) {
        Ok(Outcome::Wait) => Ok(None),
        Ok(Outcome::Answer(answer)) if answer.0.len() as u64 > room => {
            finish(queue, chain, &header, Err(Errno::RANGE)).map(Some)
        }
        result => finish(queue, chain, &header, result).map(Some),
    }
}

/// Writes an answer. Returns its length.
fn finish(
    queue: &Queue,
    chain: &Chain,
    header: &Header,
    result: Result<Outcome, Errno>,
) -> Result<u32, QueueError> {
    let mut writer = chain.writer(queue.memory());
    if writer.remaining() < ANSWER_HEADER as u64 {
        return Ok(0);
    }
    let (error, length, body) = match &result {
        Ok(Outcome::Answer(answer)) => (None, answer.0.len(), &answer.0[..]),
        Ok(Outcome::InPlace(length)) => (None, *length as usize, &[][..]),
        Ok(Outcome::Wait) => (Some(Errno::AGAIN), 0, &[][..]),
        Err(error) => (Some(*error), 0, &[][..]),
    };
    writer.write(&header.answer(error, length))?;
    writer.write(body)?;
    Ok((ANSWER_HEADER + length) as u32)
}
