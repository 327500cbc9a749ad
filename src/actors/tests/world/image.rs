//! What can be asked of an image, as commands.

use super::{ImageAct, at, id, letter, sealed};
use crate::actors::images::ImageCommand;
use crate::events::families::{ImageFailed, ImageLayerAdded, ImageReady, ImageRequested};
use crate::ids::{ImageId, OrgId};

/// Lives of images in which everything happens that can be recorded, by slot.
pub fn image_lives() -> impl Iterator<Item = (usize, ImageAct)> {
    use ImageAct as I;
    let named = [I::Request(Some(0)), I::AddLayer(0), I::Ready, I::Use];
    let deleted = [I::Request(None), I::AddLayer(1), I::Ready, I::Delete];
    let in_slot = |slot: usize, acts: Vec<I>| acts.into_iter().map(move |act| (slot, act));
    in_slot(0, named.into())
        .chain(in_slot(1, deleted.into()))
        .chain(in_slot(2, vec![I::Request(Some(1)), I::Fail]))
}

pub(super) fn image_command(own: &ImageId, act: &ImageAct, org: OrgId) -> ImageCommand {
    use ImageCommand as C;
    let at = at(5);
    let checkpoint = |number: u8| id(&format!("00000000-0000-7000-8000-0000000000e{number}"));
    match act {
        ImageAct::Request(name) => C::Request(Box::new(ImageRequested {
            image_id: *own,
            org_id: org,
            name: name.map(letter),
            content_hash: "ab".repeat(32),
            manifest: vec![sealed("CIPHERTEXT")],
            checkpoint_id: checkpoint(9),
            at,
        })),
        ImageAct::AddLayer(number) => C::AddLayer(ImageLayerAdded {
            key: "cd".repeat(32),
            checkpoint_id: checkpoint(*number),
            at,
        }),
        ImageAct::Ready => C::Ready(ImageReady { at }),
        ImageAct::Fail => C::Fail(ImageFailed {
            reason: "step 1 (run) failed with exit code 1".to_owned(),
            at,
        }),
        ImageAct::Use => C::Use { org, at },
        ImageAct::Delete => C::Delete { org, at },
    }
}
