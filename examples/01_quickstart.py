"""Two models that ship with reasonrt, in vLLM, on one question: the program of the README."""

from reasonrt import Completion, Request, Runtime

if __name__ == "__main__":
    with Runtime.sync(roles=("draft", "target")) as runtime:
        request = Request.ask("Solve the following multiplication: 47 * 36.", policy="arbitrage")
        for event in runtime.solve(request):
            if isinstance(event, Completion):
                print("answer:", event.content, event.usage)
            else:
                print(f"[{event.author}] {event.text.strip()}")
