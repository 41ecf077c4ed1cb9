//! `replication plan`: what would a failover do with each volume, what would it lose, how long would it take?

use super::super::output::{duration, table, volumes};
use super::super::target::Target;
use super::super::{Context, Exit, Report};
use super::ask::{ask, require_replicated};
use super::preflight::sites;
use super::{Plan as Arguments, ids};
use crate::error::Result;
use crate::replication::foresight::{Inquiry, Loss, Plan, PlannedVolume};

pub(super) async fn run(context: &Context, arguments: Arguments) -> Result<Report> {
    let target = Target::find(context, &arguments.backend).await?;
    require_replicated(&target)?;
    let named = ids(&arguments.volumes);
    let inquiry = Inquiry::Plan { to: arguments.to, volumes: (!named.is_empty()).then_some(named) };
    let answer: Plan = ask(context, &target, inquiry, arguments.timeout.within()).await?;
    let exit = if answer.refused.is_some() { Exit::Failed } else { Exit::Done };
    Ok(Report::new(render(&answer), &answer)?.ending(exit))
}

fn render(plan: &Plan) -> String {
    let mut text = format!("A failover of {} from {} to {} would\n", plan.backend, plan.from, plan.to);
    if let Some(refused) = &plan.refused {
        text.push_str(&format!("be refused: {refused}\n"));
    }
    text.push_str(&sites(&plan.sites));
    text.push('\n');
    if !plan.volumes.is_empty() {
        let rows = plan.volumes.iter().map(|v| {
            [
                v.volume.clone(),
                v.name.clone().unwrap_or_default(),
                v.from.clone(),
                v.action.as_str().to_owned(),
                v.reason.clone().unwrap_or_default(),
                behind(v),
                if v.attached { "yes" } else { "" }.to_owned(),
            ]
        });
        text.push_str(&table(["Volume", "Name", "From", "What", "Why", "Copy behind", "Attached"], rows));
        text.push('\n');
    }
    let counts = plan.counts.iter().map(|(fate, n)| format!("{fate} {n}")).collect::<Vec<_>>().join(", ");
    text.push_str(&format!("Volumes: {}\n", if counts.is_empty() { "none".to_owned() } else { counts }));
    text.push_str(&format!("Loss: {}\n", loss(&plan.loss)));
    text.push_str(&match plan.time.seconds {
        Some(seconds) => format!("Time: about {seconds} s ({})\n", plan.time.basis),
        None => format!("Time: {}\n", plan.time.basis),
    });
    text.push_str("Nothing was touched.");
    text
}

fn behind(volume: &PlannedVolume) -> String {
    match (volume.entries_behind, volume.seconds_behind) {
        (Some(entries), _) => format!("{entries} entries"),
        (None, Some(seconds)) => duration(seconds),
        (None, None) => String::new(),
    }
}

fn loss(loss: &Loss) -> String {
    if loss.volumes == 0 {
        return "none: nothing would be forced".to_owned();
    }
    let mut known = Vec::new();
    if loss.entries > 0 {
        known.push(format!("{} journal entries that had not arrived by the last reports", loss.entries));
    }
    if let Some(seconds) = loss.seconds {
        known.push(format!("up to {} of writes, where mirrored by snapshots", duration(seconds)));
    }
    if loss.unknown > 0 {
        known.push(format!("not known for {}", volumes(loss.unknown)));
    }
    if known.is_empty() {
        known.push("what was written after the last reports".to_owned());
    }
    format!("{} forced; {}", volumes(loss.volumes), known.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_says_what_is_known_and_what_is_not() {
        assert_eq!(loss(&Loss::default()), "none: nothing would be forced");
        let some = Loss { volumes: 3, entries: 12, seconds: Some(90), unknown: 1 };
        let text = loss(&some);
        for part in ["3 volumes forced", "12 journal entries", "up to 1m30s", "not known for 1 volume"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let fresh = Loss { volumes: 1, ..Loss::default() };
        assert!(loss(&fresh).contains("after the last reports"));
    }
}
