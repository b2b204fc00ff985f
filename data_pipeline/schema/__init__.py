"""Types that every package uses: settings base, user errors, corpus settings, manifest, rejects, shown texts."""
