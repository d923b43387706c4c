"""The hub: the Hugging Face wire protocol over the workspace's store."""
