"""The server of the contract: a control plane, an agent per sandbox, and the truth about every job."""
