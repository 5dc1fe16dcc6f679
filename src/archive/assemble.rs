//! Builds the archive from the capture, session by session: each one's captured pages are copied into its files and, in
//! parallel, hashed. Summaries, hashes and the archive's sorted directory come last. Runs on a thread of its own.
//!
//! Sessions are added in the order of their completion, not of their names, so that writing can begin while fetching goes on.
//! However early it begins, the same capture gives the same bytes.

use std::fs::File;
use std::path::PathBuf;
use std::thread::available_parallelism;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::ahead::Begun;
use super::files::ArchivedSession;
use super::hash::{self, Hashing, Sha256Digest};
use super::lines::{Lines, write_pipelined};
use super::render::{self, Facts, SessionInfo};
use super::scratch::{Keys, Names, Scratch};
use super::sink::{self, Assembled, Form, Sink, Text};
use super::zip::Located;
use super::{ArchiveError, copy, ensure_not_cancelled, join, layout};
use crate::capture::{Location, Place, PrefetchedSegments, RangeId, Reader, SEPARATOR, WindowTotals};
use crate::files::{blocking, free_space};

/// The number of sessions read from the database at a time.
const AT_A_TIME: i64 = 250;
/// And at most this many pages, unless a single session has more: the location of each is held in memory meanwhile.
const PAGES_AT_A_TIME: i64 = 2_500;
/// One thread writes the zip and another hashes it as a whole: more threads hashing sessions would only wait for those two.
const MOST_THREADS: usize = 8;
/// Assembly leaves at least this much of the disk free.
const KEEP_FREE: u64 = 16 << 20;

/// Disk space that a session takes besides its messages: heads, names, lines; in a directory also whole blocks and inodes for
/// two or three files.
fn room_for_a_session(form: Form) -> u64 {
    match form {
        Form::Zip => 3 << 10,
        Form::Directory => 12 << 10,
    }
}

/// Where to read from, where to work, and what is made.
#[derive(Debug, Clone)]
pub struct AssembleInput {
    /// The job's directory: the capture is in it, and temporary files are made in it.
    pub directory: PathBuf,
    pub form: Form,
    pub cancel: CancellationToken,
}

/// Makes the archive, or the rest of it.
pub async fn assemble(Begun { input, assembly }: Begun) -> Result<Assembled, ArchiveError> {
    on_own_thread(move |runtime| {
        let assembly = match assembly {
            Some(assembly) => assembly,
            None => Assembly::begin(input, runtime)?,
        };
        assembly.complete()
    })
    .await
}

/// Runs `work` where it may block: inflating and hashing would hold up the threads that serve sockets.
pub(super) async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce(Handle) -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, ArchiveError> {
    let runtime = Handle::current();
    blocking(move || work(runtime)).await
}

/// Which sessions are to be added.
#[derive(Clone, Copy)]
enum Which<'a> {
    /// Those that are completely fetched, while others are still being fetched.
    Complete {
        until: &'a CancellationToken,
    },
    All,
}

impl Which<'_> {
    fn is_told_to_stop(self) -> bool {
        matches!(self, Self::Complete { until } if until.is_cancelled())
    }

    /// About how many threads hash sessions.
    fn threads(self) -> usize {
        match self {
            Self::Complete { .. } => 1,
            Self::All => available_parallelism().map_or(1, usize::from).min(MOST_THREADS),
        }
    }
}

/// An archive that is being made.
#[derive(Debug)]
pub(super) struct Assembly {
    input: AssembleInput,
    /// For blocking on the asynchronous reader.
    runtime: Handle,
    reader: Reader,
    keys: Keys,
    scratch: Scratch,
    sink: Box<dyn Sink>,
    facts: Facts,
    /// The place of the last session added.
    last: Place,
    /// The totals of the sessions added so far.
    totals: WindowTotals,
    /// Bytes of all segments added so far.
    copied: u64,
}

impl Assembly {
    /// Requires that all sessions are known.
    pub(super) fn begin(input: AssembleInput, runtime: Handle) -> Result<Self, ArchiveError> {
        let location = Location::in_directory(&input.directory);
        let names = location.with_reader(async |reader| read_names(&input, reader).await);
        let (facts, keys, scratch) = runtime.block_on(names)?;
        let sink = sink::open(&input.directory, input.form, facts.started_at)?;
        let reader = runtime.block_on(location.open_reader())?;
        let (last, totals) = (Place::default(), WindowTotals::default());
        Ok(Self { input, runtime, reader, keys, scratch, sink, facts, last, totals, copied: 0 })
    }

    /// Adds the sessions that are completely fetched, until told to stop. Leaves as much of the disk free as the capture takes
    /// now, for what is still to come.
    pub(super) fn add_complete(&mut self, stop: &CancellationToken) -> Result<(), ArchiveError> {
        let captured = self.reader.segments().size()?;
        self.check_room(captured.saturating_sub(self.copied), captured)?;
        self.add_sessions(Which::Complete { until: stop })
    }

    /// Adds all that is missing; nothing more may be fetched.
    fn complete(mut self) -> Result<Assembled, ArchiveError> {
        let added = self.add_all().and_then(|()| self.add_summaries());
        self.runtime.block_on(self.reader.close());
        added?;
        self.sink.finish(self.scratch.entries()?)
    }

    /// Closes what it reads; what was made is removed on drop.
    pub(super) fn discard(self) {
        self.runtime.block_on(self.reader.close());
    }

    /// Adds all remaining sessions.
    fn add_all(&mut self) -> Result<(), ArchiveError> {
        let captured = self.reader.segments().size()?;
        let all = self.runtime.block_on(async {
            match self.input.form {
                // If the index claims more than there is, it is damaged, which is reported when it is read.
                Form::Zip => Ok(self.reader.packed_bytes().await?.min(captured)),
                // A directory is never begun early: all of it is still to be written.
                Form::Directory => self.reader.raw_bytes().await,
            }
        })?;
        self.check_room(all.saturating_sub(self.copied), 0)?;
        self.add_sessions(Which::All)?;
        Ok(self.scratch.check_whole()?)
    }

    /// The number of sessions that have not been added yet.
    #[cfg(test)]
    pub(super) fn missing(&self) -> u64 {
        self.scratch.missing()
    }

    /// Fails unless the disk has room for the missing sessions, with `to_copy` bytes of items, and for `beside` bytes more.
    fn check_room(&self, to_copy: u64, beside: u64) -> Result<(), ArchiveError> {
        let for_sessions = self.scratch.missing() * room_for_a_session(self.input.form);
        let needed = to_copy.saturating_mul(2).saturating_add(for_sessions + beside + KEEP_FREE);
        let free = free_space(&File::open(&self.input.directory)?)?;
        if free < needed {
            return Err(ArchiveError::NoRoom { needed, free, path: self.input.directory.clone() });
        }
        Ok(())
    }

    fn add_sessions(&mut self, which: Which<'_>) -> Result<(), ArchiveError> {
        let Self { input: AssembleInput { cancel, .. }, runtime, reader, keys, scratch, sink, facts, .. } =
            self;
        let mut read = |after| runtime.block_on(sessions_after(reader, after, which, facts, keys));
        let mut next = read(self.last)?;
        let mut made = Vec::new();
        while let Some(Round { last, sessions, stored, totals }) = next
            && !which.is_told_to_stop()
        {
            ensure_not_cancelled(cancel)?;
            // While one round is copied and hashed, the one before is put away and the next one is read. If copying or hashing
            // fails, the other is stopped.
            let stop = cancel.child_token();
            let (copied, hashed, put, after) = std::thread::scope(|scope| {
                let copying = scope.spawn(|| {
                    copy::sessions(&sessions, &stored, &stop, &mut **sink).inspect_err(|_| stop.cancel())
                });
                let hashing = scope.spawn(|| {
                    hash::sessions(&sessions, &stored, &stop, which.threads()).inspect_err(|_| stop.cancel())
                });
                let putting = scope.spawn(|| put_away(std::mem::take(&mut made), scratch));
                let after = read(last);
                (join(copying), join(hashing), join(putting), after)
            });
            put?;
            let (located, hashes) = match (copied, hashed) {
                (Err(ArchiveError::Cancelled), Err(cause)) => return Err(cause),
                (copied, hashed) => (copied?, hashed?),
            };
            self.totals.add(&totals);
            self.copied += sessions.iter().map(ArchivedSession::packed_len).sum::<u64>();
            let results = sessions.into_iter().zip(located).zip(hashes);
            made = results.map(|((session, located), hashes)| Made { session, located, hashes }).collect();
            (self.last, next) = (last, after?);
        }
        put_away(made, scratch)
    }

    /// Adds the entries that belong to no session.
    fn add_summaries(&mut self) -> Result<(), ArchiveError> {
        let Self { input, runtime, reader, scratch, sink, facts, totals, .. } = self;
        let sink = &mut **sink;
        add_lines(scratch, sink, &input.cancel)?;
        let summary = runtime.block_on(render::summary(reader, facts, scratch.sessions(), totals))?;
        let mut after = RangeId::default();
        while let Some((last, some)) = runtime.block_on(render::not_found(reader, after))? {
            ensure_not_cancelled(&input.cancel)?;
            some.iter().try_for_each(|(key, line)| scratch.add_not_found(key, line))?;
            after = last;
        }
        let mut not_found = scratch.sorted_not_found()?;
        add_hashed(scratch, sink, layout::SUMMARY, &mut |entry| {
            entry.text(summary.as_bytes())?;
            add_array(entry, || Ok(not_found.next()?.map(str::to_owned)))?;
            entry.text(render::AFTER_SUMMARY.as_bytes())
        })?;
        let (mut after, mut some) = (i64::MIN, Vec::new().into_iter());
        let mut next_failure = || {
            if some.len() == 0
                && let Some((last, failures)) = runtime.block_on(render::failures(reader, after))?
            {
                (after, some) = (last, failures.into_iter());
            }
            ensure_not_cancelled(&input.cancel).map(|()| some.next())
        };
        add_hashed(scratch, sink, layout::FAILURES, &mut |entry| {
            add_array(entry, &mut next_failure)?;
            entry.text(b"\n")
        })?;
        let located = sink.entry(layout::SUMS, 0, &mut |entry| {
            write_pipelined(entry, |put| {
                let mut lines = Lines::new(put, b"", b"\n");
                scratch.sums(|line| ensure_not_cancelled(&input.cancel).and_then(|()| lines.push(line)))?;
                lines.finish(b"\n")
            })
        })?;
        scratch.add_entry(layout::SUMS, None, located)
    }
}

/// Reads what must be known of all sessions before the files of any are named.
async fn read_names(
    input: &AssembleInput,
    reader: &mut Reader,
) -> Result<(Facts, Keys, Scratch), ArchiveError> {
    let facts = Facts::read(reader).await?;
    let mut names = Names::create(&input.directory)?;
    let mut after = 0;
    loop {
        let sessions = reader.session_infos(after, AT_A_TIME).await?;
        let Some(last) = sessions.last() else { break };
        after = last.0;
        ensure_not_cancelled(&input.cancel)?;
        for (session, zoom_id, info) in &sessions {
            names.add(*session, zoom_id, &SessionInfo::name_in(info))?;
        }
    }
    let (keys, scratch) = names.settle()?;
    Ok((facts, keys, scratch))
}

/// Adds the summary of all sessions.
fn add_lines(
    scratch: &mut Scratch,
    sink: &mut dyn Sink,
    cancel: &CancellationToken,
) -> Result<(), ArchiveError> {
    let mut sorted = scratch.sorted_lines()?;
    add_hashed(scratch, sink, layout::SESSIONS, &mut |entry| {
        write_pipelined(entry, |put| {
            let mut lines = Lines::new(put, b"[\n", SEPARATOR.as_bytes());
            while let Some(line) = sorted.next()? {
                ensure_not_cancelled(cancel)?;
                lines.push(line)?;
            }
            lines.finish(b"\n]\n")
        })
    })
}

/// Adds an entry that is hashed while it is written.
fn add_hashed(
    scratch: &mut Scratch,
    sink: &mut dyn Sink,
    name: &str,
    fill: &mut dyn FnMut(&mut Hashing<'_>) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut sha256 = None;
    let located = sink.entry(name, 0, &mut |entry| {
        let mut hashing = Hashing::new(entry);
        fill(&mut hashing)?;
        sha256 = Some(hashing.digest());
        Ok(())
    })?;
    scratch.add_entry(name, sha256, located)
}

/// Writes an array, one item per line.
fn add_array(
    entry: &mut Hashing<'_>,
    mut next: impl FnMut() -> Result<Option<String>, ArchiveError>,
) -> Result<(), ArchiveError> {
    let Some(mut item) = next()? else { return entry.text(b"[]") };
    let mut put = |block: Vec<u8>| entry.text(&block);
    let mut lines = Lines::new(&mut put, b"[\n", SEPARATOR.as_bytes());
    loop {
        lines.push(&item)?;
        match next()? {
            Some(another) => item = another,
            None => return lines.finish(b"\n]"),
        }
    }
}

/// A session whose files are in the archive.
struct Made {
    session: ArchivedSession,
    /// Where its files are, and what they hash to.
    located: Vec<Located>,
    hashes: Vec<Sha256Digest>,
}

fn put_away(made: Vec<Made>, scratch: &mut Scratch) -> Result<(), ArchiveError> {
    for Made { session, located, hashes } in made {
        for ((file, located), hash) in session.files.iter().zip(located).zip(hashes) {
            scratch.add_entry(&file.name, Some(hash), located)?;
        }
        scratch.add_line(&session.key, &session.line)?;
    }
    Ok(())
}

/// Some sessions that are added together.
struct Round {
    /// The place of the last of them.
    last: Place,
    sessions: Vec<ArchivedSession>,
    stored: PrefetchedSegments,
    totals: WindowTotals,
}

/// Reads the next sessions after this place; `None` if there are none.
async fn sessions_after(
    reader: &mut Reader,
    after: Place,
    which: Which<'_>,
    facts: &Facts,
    keys: &Keys,
) -> Result<Option<Round>, ArchiveError> {
    let if_incomplete = matches!(which, Which::All);
    let sessions = reader.sessions_after(after, if_incomplete, AT_A_TIME, PAGES_AT_A_TIME).await?;
    let Some(last) = sessions.last().map(|session| session.place) else { return Ok(None) };
    let (pages, totals) = reader.pages_of(&sessions, PAGES_AT_A_TIME).await?;
    let stored = reader.segments().read_ahead(pages.iter().flatten());
    let sessions = sessions.into_iter().zip(pages);
    let sessions = sessions.map(|(session, pages)| ArchivedSession::new(&session.row, pages, facts, keys));
    Ok(Some(Round { last, sessions: sessions.collect(), stored, totals }))
}
