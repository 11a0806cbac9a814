"""The thin Ray layer that every stage shares: session, table building, actor pool."""
