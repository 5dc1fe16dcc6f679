//! The first pass over the messages: the SHA-256 of every file, before the first byte of the archive is written.

use std::sync::mpsc::{self, Receiver};
use std::thread::available_parallelism;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::ArchiveError;
use super::assemble::Text;
use super::render::{AFTER_ITEMS, BEFORE_ITEMS, SessionFrame};
use crate::capture::{CaptureError, Kind, PageRef, SEPARATOR, SegmentReader};

/// Pages inflated by one thread and waiting to be hashed.
const AHEAD: usize = 2;

pub type Sha256Digest = [u8; 32];

/// Hashes the text of a document.
#[derive(Debug, Default)]
pub struct Hashing(Sha256);

impl Hashing {
    pub fn digest(self) -> Sha256Digest {
        self.0.finalize().into()
    }
}

impl Text for Hashing {
    fn text(&mut self, raw: &[u8]) -> Result<(), ArchiveError> {
        self.0.update(raw);
        Ok(())
    }
}

/// Of a session's own file, and of the file of each kind of which it has any item.
#[derive(Debug)]
pub struct SessionHashes {
    pub whole: Sha256Digest,
    pub items: [Option<Sha256Digest>; 3],
}

type Inflated = Result<Vec<u8>, CaptureError>;

/// Hashes the files of these sessions. Each segment is inflated once, on one of as many threads as there are processors
/// and a little ahead of this one, and feeds two hashes. That goes page by page, so that one giant session keeps all of
/// them busy as well.
pub fn sessions(
    sessions: &[(SessionFrame, &[PageRef])],
    segments: &SegmentReader,
    cancel: &CancellationToken,
) -> Result<Vec<SessionHashes>, ArchiveError> {
    std::thread::scope(|scope| {
        let threads = available_parallelism().map_or(1, usize::from);
        let inflating = (0..threads).map(|nth| {
            let (sender, inflated) = mpsc::sync_channel::<Inflated>(AHEAD);
            let mut pages = sessions.iter().flat_map(|(_, pages)| *pages).skip(nth).step_by(threads);
            // Nobody takes any more once one could not be read, or the job was cancelled.
            scope.spawn(move || pages.try_for_each(|page| sender.send(segments.inflated(page))));
            inflated
        });
        let inflating: Vec<Receiver<Inflated>> = inflating.collect();
        let mut in_turn = inflating.iter().cycle();
        let mut next = || {
            let inflated = in_turn.next().expect("there is a thread").recv();
            Ok(inflated.map_err(std::io::Error::other)??)
        };
        sessions
            .iter()
            .map(|(frame, pages)| {
                if cancel.is_cancelled() {
                    return Err(ArchiveError::Cancelled);
                }
                session(frame, pages, &mut next)
            })
            .collect()
    })
}

/// The pages come in the order of kinds.
fn session(
    frame: &SessionFrame,
    pages: &[PageRef],
    next: &mut impl FnMut() -> Result<Vec<u8>, ArchiveError>,
) -> Result<SessionHashes, ArchiveError> {
    let mut whole = Sha256::new();
    let mut items = [const { None }; 3];
    for kind in Kind::ALL {
        whole.update(&frame.before[kind as usize]);
        let mut own: Option<Sha256> = None;
        for _ in pages.iter().filter(|page| page.kind == kind) {
            let raw = next()?;
            let own = if let Some(own) = &mut own {
                whole.update(SEPARATOR);
                own.update(SEPARATOR);
                own
            } else {
                own.insert(Sha256::new_with_prefix(BEFORE_ITEMS))
            };
            whole.update(&raw);
            own.update(&raw);
        }
        items[kind as usize] = own.map(|own| own.chain_update(AFTER_ITEMS).finalize().into());
    }
    whole.update(&frame.after);
    Ok(SessionHashes { whole: whole.finalize().into(), items })
}
