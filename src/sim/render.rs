//! The JSON text of one item, exactly as served.
//!
//! Written by hand instead of serialised from types: tests compare the text itself byte for byte, with odd spacing, unusual
//! escapes, numbers beyond 64 bits and undocumented members.

use super::calendar::push_instant;
use super::dataset::{ItemOptions, SessionShape};
use super::encoding::{push_base64url, push_hex, push_number};
use super::feed::{ItemKind, SlotPlan};
use super::noise::Noise;
use super::words;

/// The most members of a session who write.
const WRITERS: u64 = 40;

/// Everything that an item's text depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct ItemOf<'a> {
    pub account: Noise,
    pub shape: &'a SessionShape,
    pub plan: SlotPlan,
    pub slot: u64,
    pub kind: ItemKind,
    /// When it was edited or deleted.
    pub action_ms: Option<i64>,
    pub hostile: bool,
    pub text_scale: u32,
}

/// Appends a message id: the same for a message and its modifications.
pub(super) fn push_message_id(out: &mut String, plan: &SlotPlan, slot: u64) {
    let noise = plan.slot_noise(slot).with(30);
    for (position, digits) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if position > 0 {
            out.push('-');
        }
        push_hex(out, noise.with(position as u64).value(), digits);
    }
}

pub(super) fn push_item(out: &mut String, item: &ItemOf<'_>, options: ItemOptions) {
    let noise = item.plan.slot_noise(item.slot);
    let sent_ms = item.plan.sent_ms(item.slot);
    let sender = words::person_of(item.plan.noise, noise.with(31).below(item.shape.members.min(WRITERS)));
    // Legal, and easily lost by a client that parses and re-serialises.
    out.push_str(if noise.with(32).one_in(20) { "{ \"id\" : \"" } else { "{\"id\":\"" });
    push_message_id(out, &item.plan, item.slot);
    out.push_str("\",\"message\":\"");
    if item.kind == ItemKind::Edited {
        out.push_str("(before the edit) ");
    }
    words::push_message_text(out, noise.with(33), item.account, item.hostile, item.text_scale);
    out.push_str("\",\"sender\":\"");
    words::push_email(out, item.account, sender);
    out.push_str("\",\"sender_member_id\":\"");
    words::push_member_id(out, item.account, sender);
    out.push_str("\",\"sender_display_name\":\"");
    words::push_display_name(out, item.account, sender);
    out.push('"');
    if !item.shape.group {
        let receiver = words::person_of(item.plan.noise, 1 - noise.with(31).below(2));
        out.push_str(",\"receiver\":\"");
        words::push_email(out, item.account, receiver);
        out.push_str("\",\"is_sender_external\":");
        out.push_str(if noise.with(34).one_in(9) { "true" } else { "false" });
    }
    out.push_str(",\"date_time\":\"");
    push_instant(out, sent_ms);
    out.push_str("\",\"timestamp\":");
    push_number(out, sent_ms.unsigned_abs());
    if let Some(action_ms) = item.action_ms {
        out.push_str(",\"action_timestamp\":");
        push_number(out, action_ms.unsigned_abs());
    }
    if item.slot > 0 && noise.with(35).one_in(5) {
        let main = item.slot - 1 - noise.with(36).below(item.slot.min(50));
        out.push_str(",\"reply_main_message_id\":\"");
        push_message_id(out, &item.plan, main);
        out.push_str("\",\"reply_main_message_timestamp\":");
        push_number(out, item.plan.sent_ms(main).unsigned_abs());
    }
    push_attachments(out, noise);
    push_extras(out, item, noise, options);
    push_undocumented(out, item, noise);
    out.push('}');
}

fn push_attachments(out: &mut String, noise: Noise) {
    if noise.with(40).one_in(12) {
        out.push_str(",\"files\":[");
        for file in 0..=noise.with(41).below(3) {
            let noise = noise.with(42).with(file);
            if file > 0 {
                out.push(',');
            }
            out.push_str("{\"file_id\":\"");
            push_base64url(out, &noise.with(0).value().to_le_bytes());
            out.push_str("\",\"file_name\":\"");
            let name = noise.with(1).pick(&[
                "48k.png",
                "отчёт.xlsx",
                "plan (final) v2.pdf",
                "日程.docx",
                "a&b=c.txt",
            ]);
            out.push_str(name);
            out.push_str("\",\"file_size\":");
            push_number(out, noise.with(2).between(1, 90_000_000));
            out.push_str(",\"download_url\":\"https://zoom.us/file/download/");
            push_base64url(out, &noise.with(0).value().to_le_bytes());
            out.push_str("?filename=f&jwt=");
            push_base64url(out, &noise.with(3).value().to_le_bytes());
            out.push_str("\"}");
        }
        out.push(']');
    }
    if noise.with(43).one_in(60) {
        out.push_str(",\"giphy_information\":[{\"giphy_view_url\":\"https://giphy.com/gifs/");
        push_base64url(out, &noise.with(44).value().to_le_bytes());
        out.push_str("\"}]");
    }
    if noise.with(45).one_in(70) {
        out.push_str(",\"forward_id\":\"");
        push_hex(out, noise.with(46).value(), 16);
        out.push('"');
    }
    if noise.with(47).one_in(6) {
        out.push_str(",\"rich_text\":[{\"start_position\":0,\"end_position\":5,\"format_type\":\"");
        out.push_str(noise.with(48).pick(&["Bold", "Italic", "Strikethrough", "Paragraph", "Quote"]));
        out.push_str("\",\"format_attr\":\"h1\"}]");
    }
}

fn push_extras(out: &mut String, item: &ItemOf<'_>, noise: Noise, options: ItemOptions) {
    // Zoom's API description has reactions on all but edited messages, and bot_message only on messages.
    let may_react = item.kind != ItemKind::Edited;
    if options.reactions && may_react && noise.with(50).one_in(4) {
        out.push_str(",\"reactions\":[");
        for reaction in 0..=noise.with(51).below(2) {
            if reaction > 0 {
                out.push(',');
            }
            out.push_str("{\"emoji\":\"U+1F6");
            push_hex(out, noise.with(52).with(reaction).value(), 2);
            push_reactors(out, item, noise.with(53).with(reaction));
        }
        out.push(']');
    }
    if options.custom_emoji_reactions && may_react && noise.with(54).one_in(15) {
        out.push_str(",\"custom_emoji_reactions\":[{\"custom_emoji_name\":\"party_");
        push_number(out, noise.with(55).below(9));
        out.push_str("\",\"custom_emoji_file_id\":\"");
        push_base64url(out, &noise.with(56).value().to_le_bytes());
        push_reactors(out, item, noise.with(57));
        out.push(']');
    }
    if options.bot_messages && item.kind == ItemKind::Message && noise.with(58).one_in(25) {
        out.push_str(",\"bot_message\":{\"is_markdown_support\":true,\"source\":\"");
        out.push_str(noise.with(59).pick(&["CCCC", "jira", "build"]));
        out.push_str("\",\"content\":{\"head\":{\"text\":\"Build \\u2116 ");
        push_number(out, noise.with(60).below(100_000));
        out.push_str("\"},\"body\":[{\"type\":\"message\",\"text\":\"ok\"}]}}");
    }
}

fn push_reactors(out: &mut String, item: &ItemOf<'_>, noise: Noise) {
    let count = noise.with(0).between(1, 4);
    out.push_str("\",\"total_count\":");
    push_number(out, count);
    out.push_str(",\"user_ids\":[");
    for reactor in 0..count {
        if reactor > 0 {
            out.push(',');
        }
        out.push('"');
        push_base64url(out, &noise.with(1).with(reactor).value().to_le_bytes());
        out.push('"');
    }
    out.push_str("],\"member_ids\":[\"");
    words::push_member_id(out, item.account, words::person_of(item.plan.noise, noise.with(2).below(WRITERS)));
    out.push_str("\"]}");
}

/// Members missing from Zoom's API description; a client must pass them on untouched.
fn push_undocumented(out: &mut String, item: &ItemOf<'_>, noise: Noise) {
    match noise.with(70).below(40) {
        0 => out.push_str(",\"x_sim_number\":12345678901234567890123"),
        1 => out.push_str(", \"x_sim_float\" : 1.10"),
        2 => out.push_str(",\"emoji_actions\":{ \"list\":[ ] ,\"n\":0 }"),
        3 => out.push_str(",\"x_sim_null\":null,\"x_sim_empty\":{}"),
        4 if item.hostile => out.push_str(",\"x_sim_huge\":1E400"),
        _ => {}
    }
}
