"""Write-ahead log: segment names and LSNs, timelines, the archive, bundles."""
