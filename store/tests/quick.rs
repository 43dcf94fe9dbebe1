//! Opening after a power cut costs what was in flight, not what is stored: P8.

use std::sync::Arc;

use baleen_fault_injection::{Operation, SimulatedDisk, Subsets};
use baleen_oci::{DiffId, Digest, ImageId};
use baleen_store::{ImageFact, LayerFact, LayerKey, PullFact, PullLayer, Store, TagFact};

/// What an opening did, counted at the port.
#[derive(Debug)]
struct Cost {
    opened: u64,
    read_bytes_outside_the_log: u64,
    listed_and_looked_up: u64,
    read_bytes_of_the_log: u64,
}

fn digest(text: &str) -> Digest {
    Digest::sha256_of(text.as_bytes())
}

/// An image of two layers of its own, each with four files.
fn add_image(store: &Store, number: u32) {
    let (config, manifest) = (format!("config {number}"), format!("manifest {number}"));
    let mut txn = store.begin().expect("a transaction");
    let mut layers = Vec::new();
    for text in ["lower", "upper"].map(|name| format!("{name} {number}")) {
        let fact = LayerFact {
            key: LayerKey::new(DiffId(digest(&text))),
            blob: digest(&format!("blob of {text}")),
            blob_size_bytes: 10,
            tar_size_bytes: 20,
            unpacked_size_bytes: 40,
            entries: 4,
            recipe_size_bytes: 1,
            implied_directories: false,
        };
        let partial = store.begin_partial(&fact.blob).expect("a partial layer");
        let disk = store.disk();
        disk.create_dir(partial.dir(), b"fs", 0o755).expect("fs");
        let fs = disk.open_dir(partial.dir(), b"fs").expect("fs");
        for name in ["a", "b", "c", "d"] {
            let file = disk.create_file(&fs, name.as_bytes(), 0o644).expect("a file");
            disk.write_at(&file, text.as_bytes(), 0).expect("its content");
        }
        layers.push(fact.key.clone());
        txn.stage_layer(partial, fact);
    }
    let image = ImageId(digest(&config));
    txn.stage_blob(&image.0, config.as_bytes()).expect("a config");
    txn.stage_blob(&digest(&manifest), manifest.as_bytes()).expect("a manifest");
    txn.store_image(ImageFact { id: image, manifest: Some(digest(&manifest)), layers });
    txn.set_tag(TagFact { name: format!("app:{number}"), image, set_at_seconds: 1 }).expect("a tag");
    txn.commit().expect("an image");
}

/// Stores `images`, cuts the power in the middle of one more pull, and opens again.
fn opening_with(images: u32) -> Cost {
    let disk = SimulatedDisk::new();
    let open = |disk: &SimulatedDisk| Store::open(Arc::new(disk.clone()), *b"a store of tests").expect("opens");
    let (store, _) = open(&disk);
    for number in 0..images {
        add_image(&store, number);
    }
    store.compact().expect("compacted");
    let blob = digest("blob under way");
    let pulled = PullLayer { blob, blob_size_bytes: 10, key: LayerKey::new(DiffId(digest("under way"))) };
    store.begin_pull(PullFact { manifest: digest("pull"), layers: vec![pulled] }).expect("a pull");
    let partial = store.begin_partial(&blob).expect("a partial layer");
    partial.checkpoints().save(b"state", 1).expect("a checkpoint");
    let recording = disk.recording();
    let cut = recording.states(recording.steps(), &Subsets::few(7)).into_iter().next().expect("a state");
    let disk = recording.reboot(&cut);
    let (store, opened) = open(&disk);
    assert!(!opened.clean && opened.missing.is_empty(), "{opened:?}");
    assert_eq!((store.images().len(), opened.resumable.len()), (images as usize, 1), "{opened:?}");
    let (read_bytes_of_the_log, read_bytes_outside_the_log) = disk.read_bytes("wal");
    Cost {
        opened: disk.calls_of(Operation::Open),
        read_bytes_of_the_log,
        read_bytes_outside_the_log,
        listed_and_looked_up: disk.calls_of(Operation::Look),
    }
}

#[test]
fn opening_after_a_cut_opens_and_reads_as_much_with_sixty_images_as_with_three() {
    let (few, many) = (opening_with(3), opening_with(60));
    println!("with 3 images {few:?}\nwith 60 images {many:?}");
    assert!(few.opened > 0 && few.read_bytes_outside_the_log > 0);
    assert_eq!(many.opened, few.opened);
    assert!(many.read_bytes_outside_the_log * 100 <= few.read_bytes_outside_the_log * 105);
    assert_eq!(many.listed_and_looked_up, few.listed_and_looked_up);
    let an_image = (many.read_bytes_of_the_log - few.read_bytes_of_the_log) / 57;
    assert!(an_image <= 16 << 10, "{an_image} bytes of the compacted log an image");
}
