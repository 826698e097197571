"""Layout inversion as durable jobs.

    inversions.py   what can be asked of jobs; all that the rest of the gateway sees
    runner.py       DBOS: one workflow a job, one durable step after the other
    steps.py        what one step does: state in, a worker's answer, state out
    losses.py       the workers, and the whole of TorchServe, that a step has cost
    absences.py     since when a model or version of it is not there
    turns.py        which step goes to the workers next, so that others find one free
    starting.py     the picture that a job starts from
    store.py        the table of jobs, which is what clients are told from
    artifacts.py    states and pictures, in a folder or behind an fsspec URL
    tending.py      what is done beside the jobs: retention, and mending what a crash left
    replicas.py     who shares a database: each replica's name, held by one process
    orphans.py      jobs of replicas that have been gone for long: to the others
    adopting.py     a dead replica's jobs to the others, by an operator

The database knows two things of a job. DBOS's tables say which steps are done and who runs it: they decide
what happens next. The table of `store.py` says what a client sees. A step writes its artifact, then that row,
and is then recorded by DBOS; what a crash leaves out is written again, the same, when the step is repeated.

SQLAlchemy and DBOS are imported when the first of these modules is needed, not when the gateway starts.
"""
