"""The audit: what was asked, answered, decided and administered, sealed, chained, signed, and forgotten on demand.

    entry -> JSON -> deflate -> AES-256-GCM under the subject's data key -> frame -> SHA-256 chain -> segment of the
    day; beside it the signed tip, and checkpoints, elsewhere

<audit>/segments/2026-11-22.log   frames, appended
        subjects/ab/<tag>.<id>    a subject's data key, wrapped; once destroyed, its records are noise
<checkpoints>/tip                 the newest frame's place in the chain, signed
              log.jsonl           older ones, signed
              pruned.jsonl        what was in segments that were pruned, signed
"""
