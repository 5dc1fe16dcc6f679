//! Writes the messages pages of a group of changes in few statements: each is a round trip to SQLite's own thread, which costs
//! more than the writing.

use jiff::Timestamp;
use serde::Serialize;

use super::set_aside::set_aside;
use super::settled::update_units;
use super::statements::json;
use super::writer::{Effect, Items, MessagesPage, Then};
use super::{CaptureError, Kind, ListId, PageRef, RangeId, Tx};

/// The items of one kind of a page, as a row of the `pages` table.
#[derive(Debug)]
pub(super) struct Row {
    pub range: RangeId,
    pub seq: i64,
    pub page: PageRef,
}

/// Where a chain continues after a page, and what its range records about it.
#[derive(Serialize)]
struct ChainState<'a> {
    range: RangeId,
    pages: i64,
    token: Option<&'a str>,
    at: Option<Timestamp>,
    query: Option<&'a str>,
    repeats: u64,
    direction: i64,
    ends: bool,
}

/// Stores pages of different chains, each with where its chain continues and the offset from which its segments are stored.
/// `commit` is the number of the commit.
pub(super) async fn messages_pages(
    tx: &mut Tx<'_>,
    commit: i64,
    pages: &[(&MessagesPage, u64)],
) -> Result<Effect, CaptureError> {
    let mut rows = Vec::new();
    for (MessagesPage { position, segments, .. }, offset) in pages {
        let mut offset = *offset;
        for (kind, segment) in Kind::ALL.into_iter().zip(segments) {
            let Some(segment) = segment else { continue };
            rows.push(Row { range: position.chain, seq: position.seq, page: segment.at(offset, kind) });
            offset += segment.data.len() as u64;
        }
    }
    let replaced = replace_pages(tx, pages).await?;
    let items = replaced + insert_pages(tx, rows).await?;
    let unknown = pages.iter().map(|(MessagesPage { position, .. }, _)| {
        (None, Some(position.chain), position.seq, &position.unknown[..])
    });
    unknown_members(tx, unknown).await?;
    let states: Vec<_> = pages
        .iter()
        .map(|(MessagesPage { position, then, query, repeats, direction, .. }, _)| {
            let next = if let Then::Next(next) = then { Some(next) } else { None };
            ChainState {
                range: position.chain,
                pages: position.seq + 1,
                token: next.map(|next| &next.token[..]),
                at: next.map(|next| next.at),
                query: next.map(|_| &query[..]),
                repeats: *repeats,
                direction: *direction,
                ends: matches!(then, Then::End),
            }
        })
        .collect();
    sqlx::query(
        "UPDATE ranges SET pages = p.value ->> 'pages', next_token = p.value ->> 'token', token_at = p.value ->> 'at',
             query = p.value ->> 'query',
             repeats = iif(p.value ->> 'pages' = 1, 0, repeats) + (p.value ->> 'repeats'),
             newest_first = iif(p.value ->> 'pages' = 1, 0, newest_first) + (p.value ->> 'direction'),
             state = iif(p.value ->> 'ends', 'done', 'pending')
         FROM json_each(?) AS p WHERE ranges.id = p.value ->> 'range'",
    )
    .bind(json(&states))
    .execute(&mut **tx)
    .await?;
    let ended: Vec<RangeId> = pages
        .iter()
        .filter(|(page, _)| matches!(page.then, Then::End))
        .map(|(page, _)| page.position.chain)
        .collect();
    let effect = if ended.is_empty() { Effect::default() } else { update_units(tx, commit, &ended).await? };
    Ok(Effect { items, ..effect })
}

/// Inserts these rows. Returns the number of items stored.
pub(super) async fn insert_pages(tx: &mut Tx<'_>, mut rows: Vec<Row>) -> Result<Items, CaptureError> {
    if rows.is_empty() {
        return Ok(Items::default());
    }
    // In the order of the table, so that fewer database pages are rewritten: this saves one in a hundred of all bytes written.
    rows.sort_unstable_by_key(|row| (row.range, row.seq, row.page.kind));
    let values = |Row { range, seq, page }: &Row| {
        let PageRef { kind, items, raw_len, crc32, offset, length } = *page;
        (*range, *seq, kind as i64, items, raw_len, crc32, offset, length)
    };
    sqlx::query(
        "INSERT INTO pages (range, seq, kind, items, raw_len, crc32, offset, length)
         SELECT p.value ->> 0, p.value ->> 1, p.value ->> 2, p.value ->> 3,
                p.value ->> 4, p.value ->> 5, p.value ->> 6, p.value ->> 7
         FROM json_each(?) AS p",
    )
    .bind(json(&rows.iter().map(values).collect::<Vec<_>>()))
    .execute(&mut **tx)
    .await?;
    let mut items = Items::default();
    for Row { page, .. } in &rows {
        items.count(page.kind, page.items.cast_signed());
    }
    Ok(items)
}

/// Sets aside the earlier pages of ranges whose new first page is among these. Returns the (negative) change in items.
async fn replace_pages(tx: &mut Tx<'_>, pages: &[(&MessagesPage, u64)]) -> Result<Items, CaptureError> {
    let first = pages.iter().filter(|(page, _)| page.position.seq == 0);
    let first: Vec<RangeId> = first.map(|(page, _)| page.position.chain).collect();
    if first.is_empty() {
        return Ok(Items::default());
    }
    let replaced: Vec<RangeId> = sqlx::query_scalar(
        "SELECT id FROM ranges WHERE pages > 0 AND id IN (SELECT value FROM json_each(?))",
    )
    .bind(json(&first))
    .fetch_all(&mut **tx)
    .await?;
    if replaced.is_empty() { Ok(Items::default()) } else { set_aside(tx, &replaced).await }
}

/// The unknown members of a page: its list or its range, its number in that, and their names and values.
pub(super) type UnknownMembers<'a> = (Option<ListId>, Option<RangeId>, i64, &'a [(String, String)]);

/// Stores unknown members; there are seldom any, but then perhaps one on every page.
pub(super) async fn unknown_members(
    tx: &mut Tx<'_>,
    pages: impl Iterator<Item = UnknownMembers<'_>>,
) -> Result<(), CaptureError> {
    let members = pages.flat_map(|(list, range, seq, unknown)| {
        unknown.iter().map(move |(name, value)| (list, range, seq, name, value))
    });
    let members: Vec<_> = members.collect();
    if members.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO unknown_members (list, range, seq, name, value)
         SELECT m.value ->> 0, m.value ->> 1, m.value ->> 2, m.value ->> 3, m.value ->> 4 FROM json_each(?) AS m",
    )
    .bind(json(&members))
    .execute(&mut **tx)
    .await?;
    Ok(())
}
